import { toErrorData } from '../../kit/errors.ts';
import type { JoinEngine } from './engine.ts';
import type { JoinOutcome, JoinRequest } from './protocol.ts';

/** Carries out one command; every failure is an answer. */
export function carryOut(engine: JoinEngine, command: JoinRequest): JoinOutcome {
  try {
    if ('unjoin' in command) {
      engine.unjoin(command.unjoin);
      return { ok: true };
    }
    const fault = engine.join(command.join, command.spec);
    if (fault === undefined) return { ok: true };
    const { call, errno, domid, first, count } = fault;
    return { fault: { call, errno, domid, first, count } };
  } catch (error) {
    return { error: toErrorData(error) };
  }
}
