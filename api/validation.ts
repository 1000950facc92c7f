import type { FastifyRouteSchemaDef } from 'fastify/types/schema.js';
import type { TSchema } from 'typebox';
import { findProblem } from '../src/bridge/commands.ts';
import { VmsgError } from '../src/kit/errors.ts';
import { ParameterError } from './problem.ts';
import { namedSchemas } from './schemas.ts';

type Validated = { value: unknown } | { error: Error };

/** Compiles a schema of a route to a check that names the wrong field. */
export function compileValidator({ schema, httpPart }: FastifyRouteSchemaDef<unknown>): (input: unknown) => Validated {
  const resolved = resolve(schema as TSchema);
  if (httpPart === 'body') {
    return (input) => {
      const problem = findProblem(resolved, input ?? undefined);
      if (problem === null) return { value: input };
      const { pointer, message } = problem;
      const field = pointer === '' ? 'the body' : pointer.slice(1);
      return { error: new VmsgError('invalid-request', `${field} ${message}`, { pointer }) };
    };
  }
  return (input) => {
    const value = withNumbers(resolved, input as object);
    const problem = findProblem(resolved, value);
    if (problem === null) return { value };
    const parameter = problem.pointer.slice(1);
    return { error: new ParameterError(parameter, `the parameter ${parameter} ${problem.message}`) };
  };
}

/** Numbers arrive as text. */
function withNumbers(schema: TSchema, input: object): unknown {
  const { properties = {} } = schema as { properties?: Record<string, { type?: string }> };
  const convert = ([key, value]: [string, unknown]): [string, unknown] => {
    const isNumber = properties[key]?.type === 'integer' && typeof value === 'string' && /^-?\d{1,15}$/.test(value);
    return [key, isNumber ? Number(value) : value];
  };
  return Object.fromEntries(Object.entries(input).map(convert));
}

function resolve(schema: TSchema): TSchema {
  const name = (schema as { $ref?: string }).$ref?.replace(/#$/, '');
  return namedSchemas.find((named) => (named as { $id?: string }).$id === name && name !== undefined) ?? schema;
}
