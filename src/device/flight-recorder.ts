import type { Clock } from '../kit/clock.ts';
import {
  headerBytes,
  headerDeviceNumber,
  headerId,
  headerSize,
  headerToken,
  headerType,
} from '../virtio-msg/header.ts';

/** One message that passed a channel; its header only, no payload. */
export interface FlightRecord {
  /** Rises by one for each message of the channel; gaps tell what was overwritten. */
  readonly sequence: number;
  /** How long ago it passed, in milliseconds; threads do not share a clock that could say when. */
  readonly ageMs: number;
  readonly direction: 'in' | 'out';
  /** Type bits: 1 response, 2 bus message. */
  readonly type: number;
  readonly id: number;
  readonly deviceNumber: number;
  readonly token: number;
  readonly sizeBytes: number;
}

const recordBytes = headerBytes;

/** The headers of the last messages of one channel, in fixed memory; recording allocates nothing. */
export class FlightRecorder {
  readonly #clock: Clock;
  readonly #capacity: number;
  readonly #headers: Uint8Array;
  readonly #times: Float64Array;
  readonly #outgoing: Uint8Array;
  #count = 0;

  constructor(clock: Clock, capacity: number) {
    this.#clock = clock;
    this.#capacity = capacity;
    this.#headers = new Uint8Array(capacity * recordBytes);
    this.#times = new Float64Array(capacity);
    this.#outgoing = new Uint8Array(capacity);
  }

  record(frame: Uint8Array, outgoing: boolean): void {
    const slot = this.#count % this.#capacity;
    const at = slot * recordBytes;
    for (let i = 0; i < recordBytes; i++) this.#headers[at + i] = frame[i]!;
    this.#times[slot] = this.#clock.nowMs();
    this.#outgoing[slot] = outgoing ? 1 : 0;
    this.#count += 1;
  }

  /** Oldest first. */
  records(): FlightRecord[] {
    const first = Math.max(0, this.#count - this.#capacity);
    const nowMs = this.#clock.nowMs();
    return Array.from({ length: this.#count - first }, (_, i) => this.#read(first + i, nowMs));
  }

  #read(sequence: number, nowMs: number): FlightRecord {
    const slot = sequence % this.#capacity;
    const frame = this.#headers.subarray(slot * recordBytes, (slot + 1) * recordBytes);
    return {
      sequence,
      ageMs: nowMs - this.#times[slot]!,
      direction: this.#outgoing[slot] === 1 ? 'out' : 'in',
      type: headerType(frame),
      id: headerId(frame),
      deviceNumber: headerDeviceNumber(frame),
      token: headerToken(frame),
      sizeBytes: headerSize(frame),
    };
  }
}
