import type { Random } from '../../kit/random.ts';
import type { Closable } from '../../kit/scope.ts';
import type { Admission, ResumeClaim } from '../../ports/bus.ts';
import type { RecoveryMemory } from '../../ports/recovery.ts';
import { bytes, type Decoded, decode, encode, layout, u32, u64 } from '../../wire/layout.ts';

const record = layout('bus recovery record', 'this file', 40, {
  magic: u32(0, 'the letters VMRB'),
  resumable: u32(4, '1 while the guest of this epoch has not been seen to leave'),
  epoch: u64(8, 'last epoch'),
  token: bytes(16, 16, 'its token'),
  reserved: u64(32, 'zero'),
});

const magic = 0x42524d56;
export const busRecoveryBytes = 4096;

/** Counts the epochs of a bus and knows, across restarts of the service, which guest may resume. */
export class BusRecovery implements Closable {
  readonly #memory: RecoveryMemory;
  readonly #random: Random;
  #epoch: bigint;
  /** Only an epoch of an earlier process can be resumed: ours has seen its guests leave. */
  #inherited: { epoch: bigint; token: Uint8Array } | undefined;

  constructor(memory: RecoveryMemory, random: Random) {
    this.#memory = memory;
    this.#random = random;
    const found = decode(record, memory.bytes, 0, record.size) as Decoded<typeof record>;
    const valid = found.magic === magic;
    this.#epoch = valid ? found.epoch : 0n;
    this.#inherited = valid && found.resumable === 1 ? { epoch: found.epoch, token: found.token } : undefined;
  }

  /** Last epoch given out; 0 before the first. */
  get epoch(): bigint {
    return this.#epoch;
  }

  /** Whether a guest of an earlier process may still come back. */
  get awaited(): boolean {
    return this.#inherited !== undefined;
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
    encode(
      record,
      { magic, resumable: resumable ? 1 : 0, epoch: this.#epoch, token, reserved: 0n },
      this.#memory.bytes,
    );
  }

  close(): void {
    this.#memory.close();
  }
}
