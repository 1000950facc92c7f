import { assert } from '../kit/assert.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { Fd } from '../libc/fd.ts';
import { Mapping } from '../libc/mapping.ts';
import { createMemfd, inspectMemfd } from '../libc/memfd.ts';
import type { RingLayout } from '../virtio/geometry.ts';
import { inflightBytes } from '../virtio/inflight.ts';
import type { InflightArea } from './front-end.ts';

/** Logs of queues that are used at once do not share a cache line. */
const alignBytes = 64;

const bytesPerQueue = (layout: RingLayout, queueSize: number): number =>
  Math.ceil(inflightBytes(layout, queueSize) / alignBytes) * alignBytes;

const isPossible = ({ queues, queueSize }: InflightArea): boolean =>
  queues >= 1 && queues <= limits.vhostUserQueuesMax && queueSize >= 1 && queueSize <= limits.queueSizeMax;

/** The in-flight logs of all queues of a device in one file that the front-end keeps. */
export class InflightFile implements Closable {
  readonly area: InflightArea;
  readonly #layout: RingLayout;
  readonly #mapping: Mapping;

  private constructor(area: InflightArea, layout: RingLayout, mapping: Mapping) {
    this.area = area;
    this.#layout = layout;
    this.#mapping = mapping;
  }

  /**
   * A new one, empty.
   * @returns the logs and their file, the caller's, or why there are none. @throws SystemCallError
   */
  static create(queues: number, queueSize: number, layout: RingLayout): { file: InflightFile; fd: Fd } | string {
    const length = queues * bytesPerQueue(layout, queueSize);
    const area = { mmapSize: BigInt(length), mmapOffset: 0n, queues, queueSize };
    if (!isPossible(area)) return `an in-flight log of ${queues} queues with ${queueSize} entries`;
    const fd = createMemfd('vhost-user-inflight', length);
    const mapping = Mapping.map(fd.number, 0, length, { writable: true });
    return { file: new InflightFile(area, layout, mapping), fd };
  }

  /** One that the front-end gives back. @param fd stays the caller's. @returns the logs, or why they are refused */
  static open(area: InflightArea, layout: RingLayout, fd: Fd): InflightFile | string {
    if (!isPossible(area)) return `an in-flight log of ${area.queues} queues with ${area.queueSize} entries`;
    const length = area.queues * bytesPerQueue(layout, area.queueSize);
    const info = inspectMemfd(fd.number);
    if (typeof info === 'string') return info;
    if (area.mmapSize < BigInt(length)) return `an in-flight log of ${area.mmapSize} bytes, ${length} are needed`;
    if (area.mmapOffset % BigInt(alignBytes) !== 0n) return `an in-flight log at ${area.mmapOffset}`;
    if (area.mmapOffset + BigInt(length) > BigInt(info.sizeBytes)) return 'an in-flight log beyond the end of its file';
    try {
      return new InflightFile(
        area,
        layout,
        Mapping.map(fd.number, Number(area.mmapOffset), length, { writable: true }),
      );
    } catch (error) {
      if (error instanceof VmsgError) return error.message;
      throw error;
    }
  }

  /** @returns the log of one queue, or undefined for a queue of another size or layout */
  logOf(index: number, size: number, layout: RingLayout): Uint8Array | undefined {
    if (index >= this.area.queues || size !== this.area.queueSize || layout !== this.#layout) return undefined;
    const start = index * bytesPerQueue(layout, size);
    assert(start + inflightBytes(layout, size) <= this.#mapping.length, 'the log lies in its file');
    return this.#mapping.bytes.subarray(start, start + inflightBytes(layout, size));
  }

  close(): void {
    this.#mapping.close();
  }
}
