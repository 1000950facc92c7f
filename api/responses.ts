import type { Kind } from '../src/bridge/commands.ts';
import { type ErrorCode, errorRegistry } from '../src/kit/errors.ts';
import { problemType } from './problem.ts';

export type Operation = 'list' | 'get' | 'put' | 'delete';

/** Over TCP, every call can get them. */
export const accessProblems: readonly ErrorCode[] = ['unauthorized', 'forbidden'];

const always: readonly ErrorCode[] = ['invalid-request', ...accessProblems, 'internal', 'unavailable', 'timeout'];

const byOperation: Readonly<Record<Operation, readonly ErrorCode[]>> = {
  list: [],
  get: ['not-found'],
  put: [
    'config-owned',
    'precondition-failed',
    'limit-reached',
    'payload-too-large',
    'unsupported-media-type',
    'system-call',
  ],
  delete: ['not-found', 'config-owned', 'precondition-failed', 'in-use', 'system-call'],
};

const byPut: Readonly<Record<Kind, readonly ErrorCode[]>> = {
  domains: ['immutable', 'domain-taken'],
  buses: ['immutable', 'missing-reference', 'bus-index-taken'],
  backends: ['in-use'],
  attachments: ['immutable', 'missing-reference', 'device-number-taken', 'backend-busy', 'backend-unusable'],
};

/** The error answers of an operation, by status; each names its codes. */
export function problemResponses(operation: Operation, kind: Kind): Record<number, object> {
  return problemsOf([...always, ...byOperation[operation], ...(operation === 'put' ? byPut[kind] : [])]);
}

/** The error answers of a call that only reads. */
export const readProblems = (...codes: readonly ErrorCode[]): Record<number, object> =>
  problemsOf([...always, ...codes]);

export function problemsOf(codes: readonly ErrorCode[]): Record<number, object> {
  const byStatus: Record<number, ErrorCode[]> = {};
  for (const code of codes) {
    const { status } = errorRegistry[code];
    byStatus[status] = [...(byStatus[status] ?? []), code];
  }
  return Object.fromEntries(
    Object.entries(byStatus).map(([status, names]) => [
      status,
      {
        description: names.map((code) => `\`${code}\`: ${errorRegistry[code].title}.`).join(' '),
        content: { [problemType]: { schema: { $ref: 'Problem#' } } },
      },
    ]),
  );
}
