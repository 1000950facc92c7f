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
