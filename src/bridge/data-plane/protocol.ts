import type { ErrorData } from '../../kit/errors.ts';
import type { Domid, EventPort, HypervisorFault } from '../../ports/hypervisor.ts';

/** A port of another domain that it has made for ours, and that nobody here has bound. */
export interface EventChannelRef {
  readonly domid: Domid;
  readonly port: EventPort;
}

/** Where a guest sends or expects notifications. */
export type GuestEnd = { readonly eventfd: number } | { readonly channel: EventChannelRef };

/** The notifications of one queue. Numbers are eventfds, of this process. */
export interface JoinSpec {
  /** From the guest to the program. */
  readonly kick?: { readonly from: GuestEnd; readonly to: number };
  /** From the program to the guest. */
  readonly call?: { readonly from: number; readonly to: GuestEnd };
}

/** Commands to a data-plane thread; it carries them out one after the other. */
export type JoinRequest = { readonly join: number; readonly spec: JoinSpec } | { readonly unjoin: number };
export type JoinCommand = JoinRequest & { readonly call: number };

export type JoinOutcome =
  | { readonly ok: true }
  /** The port cannot be bound. */
  | { readonly fault: Pick<HypervisorFault, 'call' | 'errno' | 'domid' | 'first' | 'count'> }
  | { readonly error: ErrorData };

export interface JoinReply {
  readonly call: number;
  readonly outcome: JoinOutcome;
}

/** What a data-plane thread has done; each number only grows. */
export interface JoinCounts {
  /** Edges seen. */
  events: number;
  /** Signals passed on: less than `events` where several edges became one. */
  signals: number;
  rounds: number;
  /** Waits in which the thread slept. */
  sleeps: number;
  /** Waits that found the next event without sleeping, and that looked for it in vain. */
  spinsPaid: number;
  spinsUnpaid: number;
}

/** Numbers of all threads, also of those that are gone. */
export interface DataPlaneSnapshot extends JoinCounts {
  /** Queues that are joined now. */
  readonly joins: number;
}

/** Where each number stands in an array; one thread writes. */
export const countAt = { events: 0, signals: 1, rounds: 2, sleeps: 3, spinsPaid: 4, spinsUnpaid: 5 } as const;
const countNames = Object.keys(countAt) as readonly (keyof JoinCounts)[];

export const noCounts = (): JoinCounts => readCounts(newCounts());
export const newCounts = (): Float64Array<ArrayBuffer> => new Float64Array(countNames.length);
/** For another thread to read. */
export const sharedCounts = (): Float64Array<SharedArrayBuffer> =>
  new Float64Array(new SharedArrayBuffer(countNames.length * 8));

export function readCounts(from: Float64Array): JoinCounts {
  const read = (name: keyof JoinCounts): number => from[countAt[name]] ?? 0;
  return {
    events: read('events'),
    signals: read('signals'),
    rounds: read('rounds'),
    sleeps: read('sleeps'),
    spinsPaid: read('spinsPaid'),
    spinsUnpaid: read('spinsUnpaid'),
  };
}

export function addCounts(to: JoinCounts, counts: JoinCounts): void {
  for (const name of countNames) to[name] += counts[name];
}
