import { assert } from '../kit/assert.ts';
import { readU16, readU32, readU64, writeU16, writeU32, writeU64 } from './bytes.ts';

/** Why bytes of a peer are not the message they claim to be; a value, never thrown. */
export class Malformed {
  readonly reason: string;
  constructor(reason: string) {
    this.reason = reason;
  }
}

type ScalarKind = 'u8' | 'u16' | 'u32' | 'i32';

export interface Field<V = number | bigint | Uint8Array> {
  readonly kind: ScalarKind | 'u64' | 'bytes';
  readonly offset: number;
  readonly size: number;
  readonly doc: string;
  /** Exists for the type checker only. */
  readonly type?: V;
}

const scalar =
  (kind: ScalarKind, size: number) =>
  (offset: number, doc: string): Field<number> => ({ kind, offset, size, doc });

export const u8 = scalar('u8', 1);
export const u16 = scalar('u16', 2);
export const u32 = scalar('u32', 4);
export const i32 = scalar('i32', 4);
export const u64 = (offset: number, doc: string): Field<bigint> => ({ kind: 'u64', offset, size: 8, doc });
export const bytes = (offset: number, size: number, doc: string): Field<Uint8Array> => ({
  kind: 'bytes',
  offset,
  size,
  doc,
});

/** A variable part after the fixed fields, its length derived from one of them. */
export interface Tail<V = Uint8Array | number[]> {
  readonly kind: 'bytes' | 'u32s';
  readonly name: string;
  /** The fixed field that says how many bytes or words follow. */
  readonly count: string;
  /** Bytes for a count; the default is the count itself, or 4 a word. */
  readonly byteLength: (count: number) => number;
  readonly doc: string;
  readonly type?: V;
}

export const bytesTail = <N extends string>(
  name: N,
  count: string,
  doc: string,
  byteLength: (count: number) => number = (n) => n,
): Tail<Uint8Array> & { readonly name: N } => ({ kind: 'bytes', name, count, byteLength, doc });

export const u32sTail = <N extends string>(
  name: N,
  count: string,
  doc: string,
): Tail<number[]> & { readonly name: N } => ({ kind: 'u32s', name, count, byteLength: (n) => n * 4, doc });

export type Fields = Readonly<Record<string, Field<never> | Field<number> | Field<bigint> | Field<Uint8Array>>>;
type ValueOf<F> = F extends Field<infer V> ? V : never;
type TailValue<T> = T extends Tail<infer V> & { readonly name: infer N extends string } ? { [K in N]: V } : unknown;

/** The value a layout encodes and decodes: one property a field, and one for the tail. */
export type Decoded<L> = L extends Layout<infer F, infer T> ? { [K in keyof F]: ValueOf<F[K]> } & TailValue<T> : never;

export interface Layout<F extends Fields = Fields, T = Tail | undefined> {
  readonly name: string;
  /** Where the format is specified. */
  readonly source: string;
  /** Bytes of the fixed part. */
  readonly size: number;
  readonly fields: F;
  readonly tail: T;
  /** Offset of each field, for accessors on a hot path. */
  readonly at: { readonly [K in keyof F]: number };
  /** The fields in their order, for `encode` and `decode`. */
  readonly steps: readonly Step[];
  /** Whether bytes of the fixed part belong to no field. */
  readonly hasGaps: boolean;
}

interface Step {
  readonly key: string;
  readonly field: Field;
}

/**
 * Declares a wire format. Everything else follows from the table: the TypeScript type (`Decoded`),
 * `encode`, `decode`, the documentation and the golden vectors.
 */
export function layout<
  const F extends Fields,
  const T extends Tail<never> | Tail<Uint8Array> | Tail<number[]> | undefined = undefined,
>(name: string, source: string, size: number, fields: F, tail?: T): Layout<F, T> {
  const taken = new Uint8Array(size);
  const at: Record<string, number> = {};
  for (const [key, field] of Object.entries(fields) as Array<[string, Field]>) {
    at[key] = field.offset;
    assert(field.offset + field.size <= size, `${name}.${key} lies inside ${size} bytes`);
    for (let i = field.offset; i < field.offset + field.size; i++) {
      assert(taken[i] === 0, `${name}.${key} overlaps no other field`);
      taken[i] = 1;
    }
  }
  assert(tail === undefined || tail.count in fields, `${name}: the tail count is a field`);
  const steps = (Object.entries(fields) as Array<[string, Field]>).map(([key, field]) => ({ key, field }));
  const hasGaps = taken.includes(0);
  return { name, source, size, fields, tail: tail as T, at: at as { [K in keyof F]: number }, steps, hasGaps };
}

/** `slice` of a Buffer would be a view, and a Buffer. */
function copy(from: Uint8Array, start: number, end: number): Uint8Array {
  const bytes = new Uint8Array(end - start);
  bytes.set(start === 0 && end === from.length ? from : from.subarray(start, end));
  return bytes;
}

function readField(field: Field, from: Uint8Array, base: number): number | bigint | Uint8Array {
  const offset = base + field.offset;
  switch (field.kind) {
    case 'u8':
      return from[offset]!;
    case 'u16':
      return readU16(from, offset);
    case 'u32':
      return readU32(from, offset);
    case 'i32':
      return readU32(from, offset) | 0;
    case 'u64':
      return readU64(from, offset);
    case 'bytes':
      return copy(from, offset, offset + field.size);
  }
}

function writeField(field: Field, value: number | bigint | Uint8Array, to: Uint8Array, base: number): void {
  const offset = base + field.offset;
  switch (field.kind) {
    case 'u8':
      to[offset] = value as number;
      break;
    case 'u16':
      writeU16(to, offset, value as number);
      break;
    case 'u32':
    case 'i32':
      writeU32(to, offset, value as number);
      break;
    case 'u64':
      writeU64(to, offset, value as bigint);
      break;
    case 'bytes':
      assert((value as Uint8Array).length === field.size, `a ${field.size}-byte value`);
      to.set(value as Uint8Array, offset);
      break;
  }
}

type Values = Record<string, number | bigint | Uint8Array | number[]>;

function tailBytes(l: Layout, values: Values): number {
  return l.tail === undefined ? 0 : l.tail.byteLength(values[l.tail.count] as number);
}

/** Bytes that `value` takes on the wire. */
export function encodedLength<L extends Layout<never, never> | Layout>(l: L, value: Decoded<L>): number {
  const any = l as Layout;
  return any.size + tailBytes(any, value as Values);
}

/** Writes `value` at `offset`; reserved bytes become zero. @returns bytes written */
export function encode<L extends Layout<never, never> | Layout>(
  l: L,
  value: Decoded<L>,
  to: Uint8Array,
  offset = 0,
): number {
  const any = l as Layout;
  const values = value as Values;
  const length = any.size + tailBytes(any, values);
  assert(offset + length <= to.length, `${any.name} fits into ${to.length - offset} bytes`);
  if (any.hasGaps) to.fill(0, offset, offset + any.size);
  for (const { key, field } of any.steps) {
    writeField(field, values[key] as number | bigint | Uint8Array, to, offset);
  }
  if (any.tail !== undefined) {
    const tail = values[any.tail.name] as Uint8Array | number[];
    assert(
      tailBytes(any, values) === (any.tail.kind === 'bytes' ? tail.length : tail.length * 4),
      `${any.name} tail length`,
    );
    const start = offset + any.size;
    if (any.tail.kind === 'bytes') to.set(tail as Uint8Array, start);
    else for (const [i, word] of (tail as number[]).entries()) writeU32(to, start + i * 4, word);
  }
  return length;
}

/**
 * Reads a value that must take exactly `length` bytes, or at least that much fewer when `trailing` is
 * 'ignore'. The result shares no memory with `from`.
 */
export function decode<L extends Layout<never, never> | Layout>(
  l: L,
  from: Uint8Array,
  offset: number,
  length: number,
  trailing: 'reject' | 'ignore' = 'reject',
): Decoded<L> | Malformed {
  const any = l as Layout;
  if (length < any.size) return new Malformed(`${any.name}: ${length} bytes, at least ${any.size} needed`);
  const values: Values = {};
  for (const { key, field } of any.steps) {
    values[key] = readField(field, from, offset);
  }
  const expected = any.size + tailBytes(any, values);
  if (length < expected || (length > expected && trailing === 'reject')) {
    return new Malformed(`${any.name}: ${length} bytes, ${expected} expected`);
  }
  if (any.tail !== undefined) {
    const start = offset + any.size;
    if (any.tail.kind === 'bytes') values[any.tail.name] = copy(from, start, offset + expected);
    else {
      const words: number[] = [];
      for (let at = start; at < offset + expected; at += 4) words.push(readU32(from, at));
      values[any.tail.name] = words;
    }
  }
  return values as Decoded<L>;
}
