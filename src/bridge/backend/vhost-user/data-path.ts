import { VmsgError } from '../../../kit/errors.ts';
import type { LaneBackendSpec } from '../../lane/protocol.ts';
import type { Endpoint } from './endpoint.ts';

/** What an attachment to a vhost-user back-end has learnt of its ways, and how to tell it. */
export interface DirectWay {
  /** Why it is ruled out; undefined while it is not. */
  readonly ruledOut: string | undefined;
  ruleOut(why: string): void;
}

/**
 * How the guest's data reaches a vhost-user back-end: it gets the guest's memory where it was started by the service, so
 * that its end is seen, or where the backend says so; else copies.
 * @returns why it gets copies; undefined when it does not
 * @throws VmsgError backend-unusable: what the backend asks for is impossible
 */
export function reasonForCopies(
  { dataPath = 'auto' }: Extract<LaneBackendSpec, { type: 'vhost-user' | 'program' }>,
  { shadowReason }: Endpoint,
  { ruledOut }: DirectWay,
): string | undefined {
  if (dataPath === 'shadow') return 'the backend asks for copies';
  if (dataPath === 'direct' && ruledOut !== undefined) throw new VmsgError('backend-unusable', ruledOut);
  if (ruledOut !== undefined) return ruledOut;
  return dataPath === 'auto' ? shadowReason : undefined;
}
