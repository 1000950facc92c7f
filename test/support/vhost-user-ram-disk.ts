import assert from 'node:assert/strict';
import { drainEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import type { Poller } from '../../src/libc/poll.ts';
import type { GuestMemory } from '../../src/vhost-user/guest-memory.ts';
import type { ServedDevice } from '../../src/vhost-user/served-device.ts';
import type { ServedQueue } from '../../src/vhost-user/served-queue.ts';
import { blkConfig, blkRequestHead, blkRequestType, blkStatus, sectorBytes } from '../../src/virtio/blk.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { inflightBytes, openInflightLog } from '../../src/virtio/inflight.ts';
import { type Chain, type DeviceQueue, QueueFault } from '../../src/virtio/queue.ts';
import { openDeviceQueue } from '../../src/virtio/rings.ts';
import { decode, Malformed } from '../../src/wire/layout.ts';

const sectors = 256;
export const ramDiskFeatures = FeatureSet.of(feature.VERSION_1, feature.EVENT_IDX, feature.INDIRECT_DESC);
const writebackAt = 32;

interface Running {
  readonly served: ServedQueue;
  readonly rings: DeviceQueue;
  readonly watch: { close(): void };
  taken: number;
}

/** A disk in memory, for a back-end under test. */
export class RamDisk implements ServedDevice {
  readonly features = ramDiskFeatures;
  readonly queues = 2;
  readonly ends: string[] = [];
  /** Of the log of the queue that was started last; 0 when the front-end keeps none. */
  givenLogBytes = 0;
  readonly #poller: Poller;
  readonly #content = new Uint8Array(sectors * sectorBytes);
  readonly #config = new Uint8Array(blkConfig.size);
  readonly #logs = new Map<number, Uint8Array>();
  readonly #running = new Map<number, Running>();

  constructor(poller: Poller) {
    this.#poller = poller;
    new DataView(this.#config.buffer).setBigUint64(0, BigInt(sectors), true);
  }

  get running(): readonly number[] {
    return [...this.#running.keys()];
  }

  config(): Uint8Array {
    return this.#config;
  }

  writeConfig(offset: number, content: Uint8Array, restored: boolean): boolean {
    if (!restored && (offset !== writebackAt || content.length !== 1)) return false;
    this.#config.set(content, offset);
    return true;
  }

  startQueue(served: ServedQueue, memory: GuestMemory): string | undefined {
    if (served.kick === undefined) return 'a queue without a kick';
    const bytes = inflightBytes('split', served.size);
    const own = this.#logs.get(served.index);
    const memoryOfLog = served.inflight ?? (own?.length === bytes ? own : new Uint8Array(bytes));
    this.#logs.set(served.index, memoryOfLog);
    const log = openInflightLog('split', memoryOfLog, served.size);
    // Rings continue where their log says; new ones are told by their base.
    if (served.base === 0) log.reset();
    else if (!log.resumable) return 'a base without a log';
    const rings = openDeviceQueue(served, memory, log);
    if (rings instanceof QueueFault) return `${rings.reason}: ${rings.detail}`;
    this.givenLogBytes = served.inflight?.length ?? 0;
    const kick = served.kick;
    const watch = this.#poller.watch(kick, () => {
      drainEventfd(kick);
      this.#serve(served.index);
    });
    this.#running.set(served.index, { served, rings, watch, taken: served.base });
    return undefined;
  }

  #serve(index: number): void {
    const queue = this.#running.get(index);
    if (queue === undefined) return;
    const { rings, served } = queue;
    for (;;) {
      const chain = rings.pop();
      if (chain instanceof QueueFault) {
        if (served.error !== undefined) signalEventfd(served.error);
        return;
      }
      if (chain === undefined && rings.enableKicks()) continue;
      if (chain === undefined) break;
      queue.taken = (queue.taken + 1) & 0xffff;
      rings.push(chain, this.#execute(chain));
    }
    rings.publish();
    if (rings.needsInterrupt() && served.call !== undefined) signalEventfd(served.call);
  }

  /** @returns bytes written */
  #execute({ readable, writable }: Chain): number {
    const head = readable[0];
    const status = writable.at(-1);
    assert(head !== undefined && status !== undefined);
    const request = decode(blkRequestHead, head, 0, head.length);
    assert(!(request instanceof Malformed));
    const start = Number(request.sector) * sectorBytes;
    const data = request.type === blkRequestType.OUT ? readable[1] : writable[0];
    if (data === undefined || start + data.length > this.#content.length) {
      status[0] = blkStatus.IOERR;
      return writable.reduce((sum, piece) => sum + piece.length, 0);
    }
    status[0] = blkStatus.OK;
    if (request.type === blkRequestType.OUT) this.#content.set(data, start);
    else data.set(this.#content.subarray(start, start + data.length));
    return request.type === blkRequestType.OUT ? 1 : data.length + 1;
  }

  async stopQueue(index: number): Promise<number> {
    const queue = this.#running.get(index);
    assert(queue !== undefined);
    this.#running.delete(index);
    queue.watch.close();
    queue.rings.close();
    return queue.taken;
  }

  reset(): void {
    assert.equal(this.#running.size, 0);
  }

  ended(reason: string): void {
    assert.equal(this.#running.size, 0);
    this.ends.push(reason);
  }
}
