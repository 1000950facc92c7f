import type { TSchema } from 'typebox';
import { Value } from 'typebox/value';

/** The first thing wrong with a value. */
export interface SchemaProblem {
  /** JSON pointer (RFC 6901) of the field. */
  readonly pointer: string;
  /** Completes a sentence that begins with the name of the field. */
  readonly message: string;
}

/** The keywords that our schemas use; TypeBox gives them as plain JSON Schema. */
interface SchemaNode {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, SchemaNode>>;
  readonly required?: readonly string[];
  readonly patternProperties?: Readonly<Record<string, SchemaNode>>;
  readonly additionalProperties?: unknown;
  readonly anyOf?: readonly SchemaNode[];
  readonly items?: SchemaNode;
  readonly enum?: readonly unknown[];
  readonly const?: string;
  readonly default?: unknown;
}

type Json = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const child = (pointer: string, key: string | number): string =>
  `${pointer}/${String(key).replaceAll('~', '~0').replaceAll('/', '~1')}`;

const quoted = (values: readonly unknown[]): string => values.map((value) => JSON.stringify(value)).join(', ');

/**
 * Validates like the schema compiler does but names one field: the first unknown, missing or wrong one, and
 * inside the variant of a union that the field `type` selects.
 * @returns null when the value is valid
 */
export function findProblem(schema: TSchema, value: unknown): SchemaProblem | null {
  return problemAt(schema as SchemaNode, value, '');
}

/** A copy of a valid value in which every absent field with a default has it. */
export function withDefaults(schema: TSchema, value: unknown): unknown {
  return filled(schema as SchemaNode, value);
}

function filled(schema: SchemaNode, value: unknown): unknown {
  if (!isObject(value)) return value;
  if (schema.anyOf !== undefined) {
    const variant = schema.anyOf.find(({ properties }) => properties?.type?.const === value.type);
    return variant === undefined ? value : filled(variant, value);
  }
  const result: Record<string, unknown> = {};
  for (const [key, field] of Object.entries(schema.properties ?? {})) {
    if (field.default !== undefined) result[key] = filled(field, field.default);
  }
  for (const key of Object.keys(value)) {
    const field = fieldSchema(schema, key);
    result[key] = field === undefined ? value[key] : filled(field, value[key]);
  }
  return result;
}

function problemAt(schema: SchemaNode, value: unknown, pointer: string): SchemaProblem | null {
  if (schema.anyOf !== undefined) return unionProblem(schema, schema.anyOf, value, pointer);
  if (schema.type === 'object') return objectProblem(schema, value, pointer);
  if (schema.items !== undefined && Array.isArray(value)) {
    for (const [index, item] of value.entries()) {
      const problem = problemAt(schema.items, item, child(pointer, index));
      if (problem !== null) return problem;
    }
  }
  return leafProblem(schema, value, pointer);
}

function leafProblem(schema: SchemaNode, value: unknown, pointer: string): SchemaProblem | null {
  const [error] = Value.Errors(schema as TSchema, value);
  if (error === undefined) return null;
  if (schema.enum !== undefined) return { pointer, message: `must be one of ${quoted(schema.enum)}` };
  return { pointer, message: error.message };
}

function objectProblem(schema: SchemaNode, value: unknown, pointer: string): SchemaProblem | null {
  if (!isObject(value)) return { pointer, message: 'must be an object' };
  const keys = Object.keys(value);
  for (const key of keys) {
    if (schema.additionalProperties === false && fieldSchema(schema, key) === undefined) {
      const patterns = Object.keys(schema.patternProperties ?? {});
      const message =
        patterns.length > 0 ? `is a name that does not match ${patterns.join(', ')}` : 'is not a known field';
      return { pointer: child(pointer, key), message };
    }
  }
  for (const key of schema.required ?? []) {
    if (!Object.hasOwn(value, key)) return { pointer: child(pointer, key), message: 'is missing' };
  }
  for (const key of keys) {
    const field = fieldSchema(schema, key);
    const problem = field === undefined ? null : problemAt(field, value[key], child(pointer, key));
    if (problem !== null) return problem;
  }
  return null;
}

function fieldSchema(schema: SchemaNode, key: string): SchemaNode | undefined {
  if (schema.properties !== undefined && Object.hasOwn(schema.properties, key)) return schema.properties[key];
  const match = Object.entries(schema.patternProperties ?? {}).find(([pattern]) => new RegExp(pattern).test(key));
  return match?.[1];
}

function unionProblem(
  schema: SchemaNode,
  variants: readonly SchemaNode[],
  value: unknown,
  pointer: string,
): SchemaProblem | null {
  const types = variants.map((variant) => variant.properties?.type?.const);
  if (!types.every((type) => type !== undefined)) return leafProblem(schema, value, pointer);
  if (!isObject(value)) return { pointer, message: 'must be an object' };
  if (!Object.hasOwn(value, 'type')) return { pointer: child(pointer, 'type'), message: 'is missing' };
  const variant = variants.find((_, index) => types[index] === value.type);
  if (variant === undefined) return { pointer: child(pointer, 'type'), message: `must be one of ${quoted(types)}` };
  return problemAt(variant, value, pointer);
}
