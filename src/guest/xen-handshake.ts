import type { Clock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Xenstore } from '../ports/hypervisor.ts';
import { ringCapacity, slotBytes } from '../virtio-msg/ring.ts';
import { xenbusState } from '../virtio-msg/xen-bus.ts';
import type { Changes } from './changes.ts';
import type { ResumePoint } from './transport.ts';
import {
  errorText,
  isOurs,
  publishAnswer,
  readAdmission,
  readOffer,
  serviceSide,
  stateOf,
  writeState,
  type XenAdmission,
  type XenAnswer,
  type XenOffer,
  type XenPlace,
  type XenRole,
} from './xen-nodes.ts';
import type { XenRings } from './xen-rings.ts';

export interface XenHandshakeParts {
  readonly store: Xenstore;
  readonly changes: Changes;
  readonly clock: Clock;
  readonly role: XenRole;
  /** Bytes. */
  readonly maxMessageSize: number;
  readonly queueChannels: boolean;
  readonly persistentGrants: boolean;
}

/** What both sides agreed on. */
export interface XenAgreed extends XenAdmission {
  readonly offer: XenOffer;
  readonly answer: XenAnswer;
}

/** What keeps the service from offering the bus, for the error at the end of the wait. */
function obstacle(state: number | undefined, isOld: boolean, { backend }: XenPlace): VmsgError {
  if (isOld) return new VmsgError('unavailable', 'the service has not come back');
  if (state === xenbusState.connected) {
    return new VmsgError('bus-busy', 'another process of this domain uses the bus, or the service does not run');
  }
  const what = state === undefined ? `${backend} does not exist` : `the state of ${backend} stays ${state}`;
  return new VmsgError('unavailable', `the service does not offer the bus (${what}): does it run?`);
}

/**
 * Waits until the service offers a connection.
 * @param before epoch of the last connection, which is void
 */
export async function awaitOffer(parts: XenHandshakeParts, place: XenPlace, before: bigint): Promise<XenOffer> {
  const { store, changes, clock, role } = parts;
  let last: ReturnType<typeof serviceSide> | undefined;
  const offer = await changes.until(clock, limits.guestXenOfferTimeoutMs, () => {
    last = serviceSide(store, place);
    const { state, epoch } = last;
    if (state === xenbusState.initWait && epoch !== before)
      return store.transaction((nodes) => readOffer(nodes, place, role));
    if (state === xenbusState.closed) {
      // The process before this one may have ended in the middle of its leave.
      const own = stateOf(store, place.frontend);
      if (own !== xenbusState.closed && own !== xenbusState.initialising) writeState(store, place, 'initialising');
    }
    return undefined;
  });
  if (offer === undefined) throw obstacle(last?.state, last?.epoch === before, place);
  return offer;
}

function answerTo(
  parts: XenHandshakeParts,
  offer: XenOffer,
  rings: XenRings,
  resume: ResumePoint | undefined,
): XenAnswer {
  const { toService, toGuest, channel } = rings;
  return {
    maxMessageSize: Math.min(parts.maxMessageSize, offer.maxMessageSize),
    sleepWords: offer.sleepWords,
    queueChannels: offer.queueChannels && parts.queueChannels,
    persistentGrants: offer.persistentGrants && parts.persistentGrants,
    toServiceRefs: toService.references,
    toGuestRefs: toGuest.references,
    port: channel.port,
    resume,
  };
}

/**
 * Answers an offer and waits until the service has made the connection (docs/protocol/xen-bus.md).
 * @returns undefined when the offer was withdrawn meanwhile: wait for the next one
 * @throws VmsgError 'unavailable' when the service refuses; 'bus-busy', 'timeout', 'protocol-violation'
 */
export async function answerOffer(
  parts: XenHandshakeParts,
  place: XenPlace,
  offer: XenOffer,
  rings: XenRings,
  resume: ResumePoint | undefined,
): Promise<XenAgreed | undefined> {
  const { store, changes, clock } = parts;
  const answer = answerTo(parts, offer, rings, resume);
  const slots = ringCapacity(rings.toService.bytes.length, slotBytes(answer.maxMessageSize)) - 1;
  if (slots < limits.ringSlotsMin) {
    throw new VmsgError('invalid-request', `messages of ${answer.maxMessageSize} bytes need rings of more pages`);
  }
  rings.reset();
  if (!publishAnswer(store, place, offer, answer)) return undefined;
  try {
    const look = () => lookForAdmission(store, place, offer, answer);
    const admission = await changes.until(clock, limits.handshakeTimeoutMs, look);
    if (admission === undefined) throw new VmsgError('timeout', 'the service does not finish the handshake');
    if (admission === 'withdrawn' || !rings.serviceAlive) return undefined;
    writeState(store, place, 'connected');
    return { ...admission, offer, answer };
  } catch (error) {
    // The other process has the bus: its nodes are not ours to write.
    if (!(error instanceof VmsgError && error.code === 'bus-busy')) writeState(store, place, 'closed');
    throw error;
  }
}

function lookForAdmission(
  store: Xenstore,
  place: XenPlace,
  offer: XenOffer,
  answer: XenAnswer,
): XenAdmission | 'withdrawn' | undefined {
  return store.transaction((nodes) => {
    const { state, epoch } = serviceSide(nodes, place);
    if (state === undefined) throw new VmsgError('unavailable', 'the bus was removed');
    if (epoch !== offer.epoch) return 'withdrawn';
    if (!isOurs(nodes, place, answer)) throw new VmsgError('bus-busy', 'another process of this domain uses the bus');
    if (state === xenbusState.closing || state === xenbusState.closed) {
      const why = errorText(nodes, place) ?? 'it does not say why';
      throw new VmsgError('unavailable', `the service refuses this guest: ${why}`);
    }
    return state === xenbusState.connected ? readAdmission(nodes, place) : undefined;
  });
}
