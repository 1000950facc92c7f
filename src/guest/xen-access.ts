import { type Clock, systemClock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { Scope } from '../kit/scope.ts';
import { asDomid, type Domid, type EventChannels, type Hypervisor, type Xenstore } from '../ports/hypervisor.ts';
import { slotBytes } from '../virtio-msg/ring.ts';
import { xenbusState } from '../virtio-msg/xen-bus.ts';
import { HypervisorError } from '../xen/errors.ts';
import type { BusAccess, OwnRegion, QueueSignal } from './access.ts';
import { Changes } from './changes.ts';
import { GrantArena } from './grant-arena.ts';
import type { ResumePoint, TransportFactory, TransportTerms } from './transport.ts';
import { XenConnection, type XenEnd } from './xen-connection.ts';
import { answerOffer, awaitOffer, type XenAgreed, type XenHandshakeParts } from './xen-handshake.ts';
import {
  locate,
  peerOfDevice,
  serviceSide,
  writeState,
  type XenOffer,
  type XenPlace,
  type XenRole,
} from './xen-nodes.ts';
import { makePool } from './xen-pool.ts';
import { XenRings } from './xen-rings.ts';
import { XenShares } from './xen-shares.ts';
import { ChannelSignal } from './xen-signal.ts';
import { XenTransport } from './xen-transport.ts';

export interface XenOptions {
  /** Which of this domain's buses; 0 by default. */
  readonly index?: number;
  /**
   * How the devices reach the memory of their driver. 'pool' (the default): regions that are granted once. 'grants':
   * every buffer is named by its grant references, which the service maps when it needs them.
   */
  readonly memory?: 'pool' | 'grants';
  /** Largest message this guest handles, bytes: 52..65535; 264 by default. */
  readonly maxMessageSize?: number;
  /** Pages of each message ring, 1 to 16; 4 by default, less when the service allows less. */
  readonly ringPages?: number;
  /** Whether queues may have event channels of their own (QUEUE_NOTIFY), the default. */
  readonly queueNotify?: boolean;
  /** Whether the service may keep grants mapped until it is told (with 'grants'), the default. */
  readonly persistent?: boolean;
}

export interface XenAccessParts extends XenOptions {
  readonly hypervisor: Hypervisor;
  readonly role: XenRole;
  readonly clock?: Clock;
}

interface Handles {
  readonly store: Xenstore;
  readonly channels: EventChannels;
  readonly shares: XenShares;
}

const indexMax = 0xffff;
const closedError = (): VmsgError => new VmsgError('bus-lost', 'the bus was closed');

function checkOptions({ index = 0, maxMessageSize = limits.messageSizeMaxBytes, ringPages = 1 }: XenOptions): void {
  const isIn = (value: number, least: number, most: number) =>
    Number.isInteger(value) && value >= least && value <= most;
  const size = isIn(maxMessageSize, limits.messageSizeMinBytes, 0xffff);
  if (!isIn(index, 0, indexMax) || !size || !isIn(ringPages, 1, limits.xenRingMaxPages)) {
    const what = `bus ${index}, messages of ${maxMessageSize} bytes, rings of ${ringPages} pages`;
    throw new VmsgError('invalid-request', `${what} are not possible`);
  }
}

/** A bus of this Xen domain (docs/protocol/xen-bus.md). Ring pages, references and ports serve every connection. */
export class XenAccess implements BusAccess {
  readonly grants: GrantArena | undefined;
  readonly #o: XenAccessParts;
  readonly #clock: Clock;
  /** For the handshake and the connection; and for the leave, which goes on when all else ends. */
  readonly #changes = new Changes();
  readonly #leaveChanges = new Changes();
  readonly #scope = new Scope();
  #handles: Handles | undefined;
  #place: XenPlace | undefined;
  #rings: XenRings | undefined;
  #connection: XenConnection | undefined;
  #lastOffer: XenOffer | undefined;
  /** What is under way; neither promise rejects. */
  #establishing: Promise<unknown> | undefined;
  #leave: Promise<void> | undefined;
  #closed = false;

  /** @throws VmsgError 'invalid-request' */
  constructor(parts: XenAccessParts) {
    checkOptions(parts);
    this.#o = parts;
    this.#clock = parts.clock ?? systemClock;
    const share = (pages: number) => this.reached.shares.share(this.reached.service, pages);
    this.grants = parts.memory === 'grants' ? new GrantArena(share) : undefined;
  }

  /** For a guest that uses devices. */
  readonly connect: TransportFactory = async (resume, onTerms) => {
    const connection = await this.establish(resume);
    onTerms?.(connection.terms);
    return new XenTransport(connection);
  };

  /** Makes a connection, once the one before has ended. Rejects as a TransportFactory does. */
  async establish(resume: ResumePoint | undefined): Promise<XenConnection> {
    const made = this.#establish(resume);
    const settled = made.then(
      () => {},
      () => {},
    );
    this.#establishing = settled;
    try {
      return await made;
    } catch (error) {
      throw error instanceof HypervisorError ? new VmsgError('unavailable', error.message, { cause: error }) : error;
    } finally {
      if (this.#establishing === settled) this.#establishing = undefined;
    }
  }

  async #establish(resume: ResumePoint | undefined): Promise<XenConnection> {
    await this.#leave;
    if (this.#closed) throw closedError();
    const { store, channels, shares } = this.#open();
    const place = await this.#find(store);
    const { role, maxMessageSize = limits.messageSizeMaxBytes, queueNotify = true, persistent = true } = this.#o;
    const common = { store, changes: this.#changes, clock: this.#clock, role, maxMessageSize };
    const parts: XenHandshakeParts = {
      ...common,
      queueChannels: queueNotify,
      persistentGrants: persistent && this.grants !== undefined,
    };
    for (let attempt = 0; attempt < limits.guestXenOfferAttempts; attempt++) {
      const offer = await awaitOffer(parts, place, this.#lastOffer?.epoch ?? 0n);
      const rings = this.#ringsFor(offer, channels, shares, place.service);
      const agreed = await answerOffer(parts, place, offer, rings, resume);
      if (agreed !== undefined) return this.#begin(agreed, store, place, rings);
    }
    throw new VmsgError('unavailable', 'the service withdraws every offer');
  }

  /** @throws HypervisorError when this is no Xen domain, or its device nodes are not there */
  #open(): Handles {
    if (this.#handles !== undefined) return this.#handles;
    const { hypervisor, index = 0 } = this.#o;
    const opened = new Scope();
    try {
      const store = opened.own(hypervisor.openXenstore());
      const channels = opened.own(hypervisor.openEventChannels());
      const shares = opened.own(new XenShares(hypervisor.openGrantSharer()));
      opened.own(store.watch(`device/vmsg/${index}`, () => this.#changed()));
      this.#scope.own(opened);
      this.#handles = { store, channels, shares };
      return this.#handles;
    } catch (error) {
      opened.close();
      throw error;
    }
  }

  #changed(): void {
    this.#changes.tell();
    this.#leaveChanges.tell();
  }

  #onEvent(): void {
    if (this.#connection === undefined) this.#changed();
    else this.#connection.onEvent();
  }

  /** Finds the service's directory, and watches it. */
  async #find(store: Xenstore): Promise<XenPlace> {
    const { index = 0 } = this.#o;
    const before = this.#place;
    const place = await this.#changes.until(this.#clock, limits.guestXenOfferTimeoutMs, () => locate(store, index));
    if (place === undefined) {
      const what = `device/vmsg/${index} does not exist; was it attached to this domain?`;
      throw new VmsgError('unavailable', `no bus: ${what}`);
    }
    if (before === undefined) this.#scope.own(store.watch(place.backend, () => this.#changed()));
    else if (before.service !== place.service) {
      // Everything was granted to the other domain.
      throw new VmsgError('unavailable', `the service moved from domain ${before.service} to ${place.service}`);
    }
    this.#place = place;
    return place;
  }

  #ringsFor(offer: XenOffer, channels: EventChannels, shares: XenShares, service: Domid): XenRings {
    const known = this.#rings;
    if (known !== undefined && known.pages <= offer.maxRingPages) return known;
    known?.close();
    this.#rings = undefined;
    const pages = Math.min(this.#o.ringPages ?? limits.guestRingDefaultPages, offer.maxRingPages);
    this.#rings = new XenRings(shares, channels, service, pages, () => this.#onEvent());
    return this.#rings;
  }

  #begin({ offer, answer, token, resumed }: XenAgreed, store: Xenstore, place: XenPlace, rings: XenRings) {
    this.#lastOffer = offer;
    const terms: TransportTerms = {
      maxMessageSize: answer.maxMessageSize,
      revision: offer.revision,
      transportFeatures: offer.transportFeatures,
      epoch: offer.epoch,
      token,
      resumed,
      domid: place.own,
      queueNotify: answer.queueChannels,
      persistentGrants: answer.persistentGrants,
    };
    const slotSize = slotBytes(answer.maxMessageSize);
    const { sleepWords } = answer;
    const onEnd = (how: XenEnd): void => this.#ended(how, store, place);
    const common = { store, place, rings, changes: this.#changes };
    const connection = new XenConnection({ ...common, terms, slotSize, sleepWords, onEnd });
    this.#connection = connection;
    if (!this.#closed) return connection;
    connection.close();
    throw closedError();
  }

  #ended(how: XenEnd, store: Xenstore, place: XenPlace): void {
    this.#connection = undefined;
    if (how === 'ours') this.#leave = this.#takeLeave(store, place);
    else if (how === 'closed') tryWriteState(store, place, 'closed');
  }

  /** Lets the service unmap everything before it is ungranted, for a bounded time. Never rejects. */
  async #takeLeave(store: Xenstore, place: XenPlace): Promise<void> {
    const shares = this.#handles?.shares;
    shares?.hold();
    try {
      tryWriteState(store, place, 'closing');
      const epoch = this.#lastOffer?.epoch;
      await this.#leaveChanges.until(this.#clock, limits.guestXenCloseTimeoutMs, () => {
        const service = serviceSide(store, place);
        const serves = service.state === xenbusState.connected || service.state === xenbusState.closing;
        return serves && service.epoch === epoch ? undefined : true;
      });
      shares?.letGo();
      tryWriteState(store, place, 'closed');
    } catch {
      // Without xenstore the service learns of it by what the kernel does at the end.
    } finally {
      shares?.letGo();
      this.#leave = undefined;
    }
  }

  /** What the first connection has found and opened. @throws VmsgError 'bus-lost' before it and after `close` */
  get reached(): Handles & XenPlace {
    if (this.#handles === undefined || this.#place === undefined || this.#closed) throw closedError();
    return { ...this.#handles, ...this.#place };
  }

  makeRegion(bytes: number, peer: number | undefined): OwnRegion {
    const { shares, service } = this.reached;
    const most = this.#lastOffer?.maxPoolBytes ?? limits.poolMaxBytes;
    if (bytes > most) throw new VmsgError('limit-reached', `the bus takes ${most} bytes of regions, not ${bytes}`);
    const domid = peer === undefined ? service : asDomid(peer);
    if (domid === undefined) throw new VmsgError('invalid-request', `${peer} is no domain`);
    return makePool(shares, domid, bytes);
  }

  makeQueueSignal(forProgram: boolean): QueueSignal {
    const { channels, service } = this.reached;
    return new ChannelSignal(channels, service, forProgram);
  }

  peerOf(device: number): number | undefined {
    const { store, ...place } = this.reached;
    return peerOfDevice(store, place, device);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connection?.close();
    this.#changes.end(closedError());
    this.#finish();
  }

  /** Once nothing is under way any more. */
  #finish(): void {
    const pending = this.#establishing ?? this.#leave;
    if (pending !== undefined) {
      void pending.then(() => this.#finish());
      return;
    }
    this.#rings?.close();
    this.#scope.close();
  }
}

function tryWriteState(store: Xenstore, place: XenPlace, state: keyof typeof xenbusState): void {
  try {
    writeState(store, place, state);
  } catch {
    // The nodes may be gone with the bus; there is nobody left to tell.
  }
}
