import { toErrorData } from '../../kit/errors.ts';

/** What a machine is to be: it serves buses without Xen, serves Xen domains, or is a domain that uses a service. */
export const roles = ['service', 'xen-service', 'xen-guest'] as const;
export type Role = (typeof roles)[number];

/** One thing that was looked at, in sentences. */
export interface Finding {
  readonly check: string;
  /** missing: the role does not work. note: it does, with less. */
  readonly state: 'fine' | 'missing' | 'note';
  readonly text: string;
  /** What to do about it. */
  readonly fix: string | null;
}

export const fine = (check: string, text: string): Finding => ({ check, state: 'fine', text, fix: null });
export const missing = (check: string, text: string, fix: string): Finding => ({ check, state: 'missing', text, fix });
export const note = (check: string, text: string, fix: string | null = null): Finding => ({
  check,
  state: 'note',
  text,
  fix,
});

/** Why an action fails, or null. */
export function failureOf(action: () => void): string | null {
  try {
    action();
    return null;
  } catch (error) {
    return toErrorData(error).message;
  }
}
