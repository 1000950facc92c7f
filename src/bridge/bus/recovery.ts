import type { Random } from '../../kit/random.ts';
import type { Closable } from '../../kit/scope.ts';
import type { Admission, ResumeClaim } from '../../ports/bus.ts';
import type { RecoveryMemory } from '../../ports/recovery.ts';
import { bytes, type Decoded, decode, encode, layout, u32, u64 } from '../../wire/layout.ts';

const head = layout('bus recovery head', 'this file', 8, {
  magic: u32(0, 'the letters VMRB'),
  /** Written last, with one store. */
  current: u32(4, '0: no record; 1 or 2: the record that is valid'),
});

const record = layout('bus recovery record', 'this file', 32, {
  resumable: u32(0, '1 while the guest of this epoch has not been seen to leave'),
  reserved: u32(4, 'zero'),
  epoch: u64(8, 'last epoch'),
  token: bytes(16, 16, 'its token'),
});

const magic = 0x42524d56;
const recordAt = (slot: number): number => slot * 64;
export const busRecoveryBytes = 4096;

/**
 * Counts the epochs of a bus and knows, across restarts of the service, which guest may resume. A kill between any
 * two stores leaves the record before or the one after.
 */
export class BusRecovery implements Closable {
  readonly #memory: RecoveryMemory;
  readonly #random: Random;
  readonly #words: Uint32Array;
  #slot: number;
  #epoch: bigint;
  /** Only an epoch of an earlier process can be resumed: ours has seen its guests leave. */
  #inherited: { epoch: bigint; token: Uint8Array } | undefined;

  constructor(memory: RecoveryMemory, random: Random) {
    this.#memory = memory;
    this.#random = random;
    this.#words = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, head.size / 4);
    const { magic: mark, current } = decode(head, memory.bytes, 0, head.size) as Decoded<typeof head>;
    this.#slot = mark === magic && (current === 1 || current === 2) ? current : 0;
    if (this.#slot === 0) encode(head, { magic, current: 0 }, memory.bytes);
    const found =
      this.#slot === 0
        ? { epoch: 0n, token: new Uint8Array(16), resumable: 0 }
        : (decode(record, memory.bytes, recordAt(this.#slot), record.size) as Decoded<typeof record>);
    this.#epoch = found.epoch;
    this.#inherited = found.resumable === 1 ? { epoch: found.epoch, token: found.token } : undefined;
  }

  /** Last epoch given out; 0 before the first. */
  get epoch(): bigint {
    return this.#epoch;
  }

  /** Whether a guest of an earlier process may still come back. */
  get awaited(): boolean {
    return this.#inherited !== undefined;
  }

  /** Epochs up to this one are not given out again, though the files know nothing of them. */
  skipTo(epoch: bigint): void {
    if (epoch > this.#epoch) this.#epoch = epoch;
  }

  /** Starts a new epoch. The first guest decides: after it, the inherited epoch is void. */
  admit(claim: ResumeClaim): Admission {
    const inherited = this.#inherited;
    this.#inherited = undefined;
    const resumed =
      inherited !== undefined && claim.epoch === inherited.epoch && Buffer.compare(claim.token, inherited.token) === 0;
    const token = new Uint8Array(16);
    this.#random.fill(token);
    this.#epoch += 1n;
    this.#write(token, resumed);
    return { epoch: this.#epoch, token, resumed };
  }

  /** The guest of this epoch can use its devices: from now on a restart may resume it. */
  connected(token: Uint8Array): void {
    this.#write(token, true);
  }

  /** The guest has left: nothing is to be resumed. */
  disconnected(): void {
    this.#write(new Uint8Array(16), false);
  }

  #write(token: Uint8Array, resumable: boolean): void {
    const next = this.#slot === 1 ? 2 : 1;
    const value = { resumable: resumable ? 1 : 0, reserved: 0, epoch: this.#epoch, token };
    encode(record, value, this.#memory.bytes, recordAt(next));
    Atomics.store(this.#words, head.at.current / 4, next);
    this.#slot = next;
  }

  close(): void {
    this.#memory.close();
  }
}
