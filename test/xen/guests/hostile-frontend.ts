import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { LoopPoller } from '../../../src/libc/poll.ts';
import { asDomid } from '../../../src/ports/hypervisor.ts';
import { FeatureSet } from '../../../src/virtio/features.ts';
import { ringCapacity } from '../../../src/virtio-msg/ring.ts';
import { xenbusState } from '../../../src/virtio-msg/xen-bus.ts';
import { XenHypervisor } from '../../../src/xen/hypervisor.ts';
import { needed } from '../../support/bridge-bench.ts';
import {
  type GuestProcess,
  type RequestBody,
  type RequestName,
  type ResponseBody,
  XenFrontend,
} from '../../support/xen-frontend.ts';

const waitMs = 20_000;
const floodMessages = 64;
const ringBytes = 4096;
const slotSize = 64;
const headWord = 0;
const tailWord = 16;

/** Looks until there is a value: other domains need time. */
export async function until<T>(what: string, look: () => T | undefined | false, boundMs = waitMs): Promise<T> {
  for (const end = performance.now() + boundMs; ; await sleep(5)) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    assert.ok(performance.now() < end, `in time: ${what}`);
  }
}

export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const hypervisor = new XenHypervisor(new LoopPoller());

export function ownDomid(): number {
  const xenstore = hypervisor.openXenstore();
  const domid = Number(xenstore.read('domid'));
  xenstore.close();
  return domid;
}

/** What the frontend uses of the hypervisor, for this domain. */
function processOf(domid: number): GuestProcess {
  return {
    domid: asDomid(domid)!,
    openGrantMapper: () => hypervisor.openGrantMapper(),
    openGrantSharer: () => hypervisor.openGrantSharer(),
    openEventChannels: () => hypervisor.openEventChannels(),
    openXenstore: () => hypervisor.openXenstore(),
  };
}

class CountingFrontend extends XenFrontend<GuestProcess> {
  /** Messages that were put into the ring. */
  posted = 0;

  /** Whether one message fits. */
  get hasRoom(): boolean {
    const slots = ringCapacity(ringBytes, slotSize);
    const [head, tail] = [Atomics.load(this.words, headWord), Atomics.load(this.words, tailWord)];
    return (head + 1) % slots !== tail;
  }

  override offer(frame: Uint8Array): boolean {
    const isPushed = super.offer(frame);
    if (isPushed) this.posted += 1;
    return isPushed;
  }
}

/** A frontend in a real domU: everything that its service does takes time. */
export class HostileFrontend {
  readonly raw: CountingFrontend;
  #closed = false;

  constructor(domid: number) {
    this.raw = new CountingFrontend(processOf(domid), () => {});
  }

  /** Waits for an offer, and gets everything ready for an answer. */
  async offered(): Promise<void> {
    const { raw } = this;
    await until('an offer', () => {
      const { backendState } = raw;
      if (raw.node('state') === undefined) return false;
      // What an earlier frontend, or rewriting, has left: the service offers again when it sees Closed.
      if (backendState === xenbusState.closed || backendState === xenbusState.connected)
        raw.setState(xenbusState.closed);
      return backendState === xenbusState.initWait;
    });
    raw.prepare();
  }

  /** A connection like that of any good guest. */
  async connect(): Promise<this> {
    await this.offered();
    this.raw.submit(this.raw.answer());
    await until('Connected', () => this.raw.backendState === xenbusState.connected);
    this.raw.setState(xenbusState.connected);
    return this;
  }

  async ask<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): Promise<ResponseBody<N>> {
    await until('room in the ring', () => this.raw.hasRoom);
    const token = this.raw.request(name, body, device);
    const found = await until(`the response to ${name}`, () => {
      const response = this.raw.response(name, token);
      return response === undefined ? undefined : { response };
    });
    return found.response;
  }

  /** Waits until the service has answered: everything before it was looked at. */
  async alive(): Promise<void> {
    await this.ask('PING', { data: 1 });
  }

  /** Puts messages into the ring until it is full, and takes the answers. */
  flood(frame: Uint8Array): void {
    for (let i = 0; i < floodMessages && this.raw.offer(frame); i++);
    this.raw.poll();
    this.raw.seen.length = 0;
  }

  /** From reset to FEATURES_OK. */
  async negotiate(device: number): Promise<void> {
    const blocks = FeatureSet.of(...needed).toBlocks(2);
    for (const status of [0, 3]) await this.ask('SET_DEVICE_STATUS', { status }, device);
    await this.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 2, blocks }, device);
    await this.ask('SET_DEVICE_STATUS', { status: 11 }, device);
  }

  /** @param address bus address of all three parts, one page each */
  async startQueue(device: number, address: bigint, size: number): Promise<void> {
    const page = 4096n;
    const addresses = { descAddr: address, driverAddr: address + page, deviceAddr: address + 2n * page };
    await this.ask('SET_VQUEUE', { index: 0, flags: 1, size, reserved: 0, ...addresses }, device);
    this.raw.request('SET_DEVICE_STATUS', { status: 15 }, device);
  }

  /** Gives back everything, whatever became of the connection. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // Its directory may be gone, for a while: an attack removes it.
    if (this.raw.node('state') !== undefined) this.raw.setState(xenbusState.closed);
    this.raw.sharer.close();
    this.raw.channels.close();
    this.raw.xenstore.close();
  }
}
