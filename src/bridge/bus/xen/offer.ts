import { xenbusState } from '../../../virtio-msg/xen-bus.ts';

/**
 * offered: waits for an answer; connected; closed: waits until the guest asks for an offer; due: the next offer is due,
 * whatever the guest says; absent: the guest's directory is gone; gone: the domain is.
 */
export type Phase = 'offered' | 'connected' | 'closed' | 'due' | 'absent' | 'gone';

/** What a look at the guest's directory has shown; each value is what the guest wrote. */
export interface Seen {
  readonly exists: boolean;
  readonly state: number | undefined;
  /** Looked at only where `state` is Initialised. */
  readonly epoch: bigint | undefined;
}

export type Decision =
  | { readonly do: 'nothing' }
  /** The guest has answered the offer of now. */
  | { readonly do: 'accept' }
  | { readonly do: 'offer' }
  /** The guest has seen that it is connected. */
  | { readonly do: 'acknowledge' }
  | { readonly do: 'end'; readonly reason: string; readonly next: 'closed' | 'due' | 'absent' };

const nothing: Decision = { do: 'nothing' };
const end = (reason: string, next: 'closed' | 'due' | 'absent'): Decision => ({ do: 'end', reason, next });

/**
 * What to do about a guest: docs/protocol/xen-bus.md, "States".
 * @param epoch of the offer or connection of now
 * @param acknowledged whether the guest has been seen in Connected since it is
 */
export function decide(phase: Phase, seen: Seen, epoch: bigint, acknowledged: boolean): Decision {
  if (phase === 'absent' || phase === 'gone') return nothing;
  if (!seen.exists) return end('the directory of the guest is gone', 'absent');
  switch (phase) {
    case 'offered':
      // An answer to another offer is one that the guest gave before it saw this one.
      return seen.state === xenbusState.initialised && seen.epoch === epoch ? { do: 'accept' } : nothing;
    case 'connected':
      return whileConnected(seen.state, acknowledged);
    case 'closed':
      return seen.state === xenbusState.closed || seen.state === xenbusState.initialising ? { do: 'offer' } : nothing;
    case 'due':
      return { do: 'offer' };
  }
}

function whileConnected(state: number | undefined, acknowledged: boolean): Decision {
  switch (state) {
    case xenbusState.connected:
      return acknowledged ? nothing : { do: 'acknowledge' };
    case xenbusState.closing:
      return end('the guest closed the bus', 'closed');
    case xenbusState.closed:
      return end('the guest closed the bus', 'due');
    case xenbusState.initialising:
      return end('the guest starts anew', 'due');
    case xenbusState.initialised:
      // Until it has seen that it is connected this is the state that it answered with.
      return acknowledged ? end('the guest starts anew', 'due') : nothing;
    default:
      return nothing;
  }
}
