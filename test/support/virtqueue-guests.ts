import { limits } from '../../src/kit/limits.ts';
import type { Access, Lease, TranslateFault } from '../../src/ports/memory.ts';
import { writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { TestArea, TestMemory } from './virtqueue-memory.ts';
import { makeRings, type Prng, type RingKind, type Rings } from './virtqueue-pair.ts';

/*
 * What guests write into the memory of their queues: good chains, and anything.
 */

export const DATA = 2;
export const READ_ONLY = 3;
export const SCATTERED = 4;
export const HUGE = 9;
/** More than any descriptor table: nothing is really there to read. */
export const HUGE_MIN_BYTES = 0x10000;
const DATA_BYTES = 1024;
const TABLES_AT = 512;
const TABLES = 4;
const TABLE_ENTRIES = 8;

/** Adds an area of 2^33 bytes of which nothing is really there, and lets the guest act while a chain is read. */
class HostileMemory extends TestMemory {
  onTranslate: (() => void) | undefined;
  readonly #nothing = new Uint8Array(1);

  override translate(
    hi: number,
    lo: number,
    length: number,
    access: Access,
    out: Uint8Array[],
  ): Lease | TranslateFault {
    this.onTranslate?.();
    if (hi !== HUGE << 16 || length < HUGE_MIN_BYTES) return super.translate(hi, lo, length, access, out);
    out.push(this.#nothing);
    this.openLeases += 1;
    return {
      release: () => {
        this.openLeases -= 1;
      },
    };
  }
}

export interface World extends Rings {
  readonly kind: RingKind;
  readonly memory: HostileMemory;
  readonly random: Prng;
}

export function makeWorld(kind: RingKind, size: number, random: Prng): World {
  const base = makeRings(size, { ...kind, dataBytes: DATA_BYTES });
  const memory = new HostileMemory();
  memory.add(base.rings);
  memory.add(base.data);
  memory.add(new TestArea(READ_ONLY, 256, { access: ['read'] }));
  memory.add(new TestArea(SCATTERED, 300, { pieceBytes: 37 }));
  return { ...base, kind, memory, random };
}

/** @param at in bytes, of a split descriptor */
function writeDesc(to: Uint8Array, at: number, area: number, offset: number, len: number, flags: number, next: number) {
  writeU32(to, at, offset);
  writeU32(to, at + 4, area << 16);
  writeU32(to, at + 8, len);
  writeU16(to, at + 12, flags);
  writeU16(to, at + 14, next);
}

interface Buffer {
  readonly area: number;
  readonly offset: number;
  readonly length: number;
  readonly write: boolean;
}

/** The buffers of a valid chain. */
function goodBuffers(random: Prng, count: number): Buffer[] {
  const readable = random.below(count + 1);
  return Array.from({ length: count }, (_, i) => {
    const write = i >= readable;
    const area = write ? random.pick([DATA, SCATTERED]) : random.pick([DATA, READ_ONLY, SCATTERED]);
    return { area, offset: random.below(200), length: random.chance(0.05) ? 0 : 1 + random.below(48), write };
  });
}

/** Writes a valid chain to the places `entries` of a split table. */
function writeBuffers(world: World, to: Uint8Array, entries: readonly number[], base: number): void {
  const buffers = goodBuffers(world.random, entries.length);
  for (const [i, { area, offset, length, write }] of buffers.entries()) {
    const more = i + 1 < entries.length;
    const flags = (more ? 1 : 0) | (write ? 2 : 0);
    const next = more ? entries[i + 1]! : world.random.below(4);
    writeDesc(to, base + entries[i]! * 16, area, offset, length, flags, next);
  }
}

/** Fills split rings with valid chains. */
function writeSplit(world: World, indirect: boolean): void {
  const { random, setup, driverSetup, data } = world;
  const { desc, driver } = driverSetup.memory;
  const free = Array.from({ length: setup.size }, (_, i) => i);
  for (let i = free.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [free[i], free[j]] = [free[j]!, free[i]!];
  }
  let chains = 0;
  while (free.length > 0 && chains < TABLES && (chains === 0 || random.chance(0.7))) {
    const entries = free.splice(0, 1 + random.below(Math.min(4, free.length)));
    writeU16(driver, 4 + 2 * chains, entries[0]!);
    const useTable = indirect && random.chance(0.5);
    const direct = useTable ? entries.slice(0, -1) : entries;
    writeBuffers(world, desc, direct, 0);
    if (useTable) {
      const last = entries.at(-1)!;
      // Descriptors before a table stay readable, so that the order holds whatever the table starts with.
      for (const [i, entry] of direct.entries()) writeDesc(desc, entry * 16, DATA, 8 * i, 8, 1, entries[i + 1]!);
      const count = 1 + random.below(TABLE_ENTRIES);
      const at = TABLES_AT + chains * TABLE_ENTRIES * 16;
      const inside = Array.from({ length: count }, (_, i) => i);
      writeBuffers(world, data.bytes, inside, at);
      writeDesc(desc, last * 16, DATA, at, count * 16, 4 | (random.chance(0.2) ? 2 : 0), 0);
    }
    chains += 1;
  }
  writeU16(driver, 2, chains);
}

/** Fills a packed ring with valid chains. */
function writePacked(world: World, indirect: boolean): void {
  const { random, setup, driverSetup, data } = world;
  const { desc } = driverSetup.memory;
  const base = random.chance(0.5) ? 0 : random.below(0x10000 - TABLES);
  let at = 0;
  for (let chains = 0; at < setup.size && chains < TABLES && (chains === 0 || random.chance(0.7)); chains++) {
    const count = 1 + random.below(indirect ? TABLE_ENTRIES : Math.min(4, setup.size - at));
    const id = base + (TABLES - 1 - chains);
    const inTable = indirect && (count > setup.size - at || random.chance(0.5));
    const tableAt = TABLES_AT + chains * TABLE_ENTRIES * 16;
    for (const [i, { area, offset, length, write }] of goodBuffers(random, count).entries()) {
      const flags = write ? 2 : 0;
      // The id of other descriptors than the last one, and all but WRITE in a table, mean nothing.
      if (inTable) {
        const noise = random.chance(0.2) ? random.u32() & ~2 : 0;
        writeDesc(data.bytes, tableAt + i * 16, area, offset, length, random.u32(), flags | noise);
      } else {
        const last = i === count - 1;
        const anyId = random.chance(0.5) ? id : random.u32();
        writeDesc(desc, at * 16, area, offset, length, last ? id : anyId, flags | 0x80 | (last ? 0 : 1));
        at += 1;
      }
    }
    if (inTable) {
      writeDesc(desc, at * 16, DATA, tableAt, count * 16, id, 0x84 | (random.chance(0.2) ? 2 : 0));
      at += 1;
    }
  }
}

/** Fills the rings with valid chains, as a good driver would. */
export function writeValid(world: World, indirect: boolean): void {
  if (world.kind.layout === 'packed') writePacked(world, indirect);
  else writeSplit(world, indirect);
}

type Mutations = ReadonlyArray<() => void>;

export function mutate(world: World): void {
  const { random, setup, driverSetup, data } = world;
  const inTable = random.chance(0.3);
  const where = inTable ? data.bytes : driverSetup.memory.desc;
  const at = inTable ? TABLES_AT + random.below(TABLES * TABLE_ENTRIES) * 16 : random.below(setup.size) * 16;
  const own = world.kind.layout === 'packed' ? packedMutations(world, where, at) : splitMutations(world, where, at);
  random.pick([...commonMutations(world, where, at), ...own])();
}

/** Mutations of what both layouts have in the same place. */
function commonMutations({ random, rings, data }: World, where: Uint8Array, at: number): Mutations {
  const u32 = (offset: number, ...values: number[]): void => writeU32(where, at + offset, random.pick(values));
  return [
    () => u32(8, 0, 1, 15, 17, 24, 64, 300, 0xffff_ffff, 0x8000_0000, random.u32()),
    () => u32(0, 0, 255, 299, DATA_BYTES - 1, DATA_BYTES, 0xffff_ffff, random.u32()),
    () => u32(4, random.u32(), ...[0, 1, 2, 3, 4, 5, HUGE, 0x7fff, 0xffff].map((area) => area << 16)),
    () => u32(4, random.u32()),
    () => {
      const bytes = random.pick([rings.bytes, data.bytes]);
      for (let n = random.below(6); n >= 0; n--) bytes[random.below(bytes.length)] = random.u32();
    },
  ];
}

function splitMutations({ random, setup, driverSetup }: World, where: Uint8Array, at: number): Mutations {
  const { driver } = driverSetup.memory;
  const u16 = (offset: number, ...values: number[]): void => writeU16(where, at + offset, random.pick(values));
  return [
    () => u16(14, 0, 1, random.below(setup.size), setup.size, 7, 0xffff),
    () => u16(12, random.below(8)),
    () => u16(12, random.u32()),
    () => writeU16(driver, 2, random.pick([0, setup.size, setup.size + 1, 0xffff, 0x8000, random.u32()])),
    () => writeU16(driver, 4 + 2 * random.below(setup.size), random.pick([0, 0, setup.size, 0xffff, random.u32()])),
    () => {
      // Two huge buffers in a row: each is fine, together they are too long.
      writeDesc(where, at, HUGE, 0, 0xffff_fff0, 1, random.below(setup.size));
      writeDesc(where, random.below(setup.size) * 16, HUGE, 0, 0x10000, 0, 0);
    },
    () => writeDesc(where, at, DATA, TABLES_AT, 16 * random.pick([1, 2, limits.chainDescriptorsMax + 1]), 4, 0),
  ];
}

function packedMutations({ random, setup, driverSetup }: World, where: Uint8Array, at: number): Mutations {
  const { desc } = driverSetup.memory;
  const u16 = (offset: number, ...values: number[]): void => writeU16(where, at + offset, random.pick(values));
  const place = (): number => random.below(setup.size) * 16;
  const avail = (): number => random.pick([0x80, 0x8000]);
  return [
    () => u16(12, 0, 1, random.below(setup.size), setup.size, 0xffff),
    () => desc.copyWithin(place() + 12, place() + 12, place() + 14),
    () => u16(14, avail() | random.below(8)),
    () => u16(14, random.u32()),
    () => {
      // The ring is available again, or for the first time.
      const flags = avail();
      for (let i = 0; i < setup.size; i++) writeU16(desc, i * 16 + 14, flags | (random.chance(0.3) ? 1 : 0));
    },
    () => {
      const first = random.below(setup.size);
      writeDesc(desc, first * 16, HUGE, 0, 0xffff_fff0, 0, avail() | 1);
      writeDesc(desc, ((first + 1) % setup.size) * 16, HUGE, 0, 0x10000, random.u32(), avail());
    },
    () => {
      const bytes = 16 * random.pick([1, 2, limits.chainDescriptorsMax + 1]);
      writeDesc(desc, place(), DATA, TABLES_AT, bytes, random.u32(), avail() | 4);
    },
  ];
}

/** Makes chains available, or fewer of them, without another change. */
export function announce({ kind, random, setup, driverSetup }: World): void {
  const { desc, driver } = driverSetup.memory;
  if (kind.layout === 'split') writeU16(driver, 2, random.below(setup.size + 1));
  else writeU16(desc, random.below(setup.size) * 16 + 14, 0x80);
}

export function fillWith(world: World, random: Prng): void {
  for (const area of [world.rings, world.data]) for (let i = 0; i < area.size; i++) area.bytes[i] = random.u32();
}
