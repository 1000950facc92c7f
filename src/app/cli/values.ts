import { usageError } from './exit-codes.ts';

/** Options as `parseArgs` gives them. */
export type Values = Readonly<Record<string, string | boolean | undefined>>;

/** @throws CliError when the option is missing */
export function required(values: Values, name: string): string {
  const value = values[name];
  if (typeof value !== 'string') throw usageError(`--${name} is needed`);
  return value;
}

/** @throws CliError for anything but a whole number */
export function wholeNumber(value: string, name: string): number {
  if (!/^\d+$/.test(value)) throw usageError(`${name} takes a whole number, not '${value}'`);
  return Number(value);
}

/** The fields of a spec whose options are given. @param names option name to field name */
export const fieldsOf = (values: Values, names: Readonly<Record<string, string>>): Record<string, string> =>
  Object.fromEntries(
    Object.entries(names).flatMap(([name, field]) =>
      values[name] === undefined ? [] : [[field, required(values, name)]],
    ),
  );

/** As `fieldsOf`, for whole numbers. */
export const numbersOf = (values: Values, names: Readonly<Record<string, string>>): Record<string, number> =>
  Object.fromEntries(
    Object.entries(names).flatMap(([name, field]) =>
      values[name] === undefined ? [] : [[field, wholeNumber(required(values, name), `--${name}`)]],
    ),
  );
