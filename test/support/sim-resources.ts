import type { ErrnoName } from '../../src/kit/errno.ts';
import type { CallTarget, GuestMemory, GuestResources } from '../../src/ports/bus.ts';
import type { RecoveryMemory, RecoveryStore } from '../../src/ports/recovery.ts';
import type { SimLoop, SimProcess } from './sim-loop.ts';

/** What a guest hands over by reference. */
export type SimReference =
  | { readonly kind: 'region'; readonly bytes: Uint8Array }
  | { readonly kind: 'kick'; listener: (() => void) | undefined; pending: boolean }
  | { readonly kind: 'call'; readonly ring: () => void };

/** What one guest has handed over and the service has not yet used; a region is counted until it is unmapped. */
export class SimResources implements GuestResources {
  readonly #loop: SimLoop;
  readonly #process: SimProcess;
  readonly #guest: SimProcess;
  readonly #references: Map<number, SimReference>;

  constructor(loop: SimLoop, process: SimProcess, guest: SimProcess, references: Map<number, SimReference>) {
    this.#loop = loop;
    this.#process = process;
    this.#guest = guest;
    this.#references = references;
  }

  #take<K extends SimReference['kind']>(number: number, kind: K): Extract<SimReference, { kind: K }> | ErrnoName {
    this.#process.touch();
    const reference = this.#references.get(number);
    this.#references.delete(number);
    if (reference === undefined) return 'ENOENT';
    return reference.kind === kind ? (reference as Extract<SimReference, { kind: K }>) : 'EPERM';
  }

  openRegion(reference: number, offset: bigint, length: bigint): GuestMemory | ErrnoName {
    const region = this.#take(reference, 'region');
    if (typeof region === 'string') return region;
    if (offset + length > BigInt(region.bytes.length)) return 'EINVAL';
    const bytes = region.bytes.subarray(Number(offset), Number(offset + length));
    return { bytes, close: this.#process.hold('mapping').close };
  }

  openKick(reference: number, onKick: () => void): { close(): void } | ErrnoName {
    const kick = this.#take(reference, 'kick');
    if (typeof kick === 'string') return kick;
    const handle = this.#process.hold('kick');
    let open = true;
    kick.listener = () => {
      // A counter: what was written before anyone looked is read once.
      if (kick.pending) return;
      kick.pending = true;
      this.#loop.at(this.#process, this.#loop.random.below(1000) / 1000, () => {
        kick.pending = false;
        if (open) onKick();
      });
    };
    return {
      close() {
        open = false;
        handle.close();
      },
    };
  }

  openCall(reference: number): CallTarget | ErrnoName {
    const call = this.#take(reference, 'call');
    if (typeof call === 'string') return call;
    const ring = () => void this.#loop.at(this.#guest, this.#loop.random.below(1000) / 1000, call.ring);
    return { ring, close: this.#process.hold('call').close };
  }

  give(): number | ErrnoName {
    return 'EOPNOTSUPP';
  }

  discard(reference: number): void {
    this.#references.delete(reference);
  }
}

/** Recovery memory of one bus. */
export class SimStore implements RecoveryStore {
  readonly #files: Map<string, Uint8Array>;
  readonly #process: SimProcess;

  constructor(files: Map<string, Uint8Array>, process: SimProcess) {
    this.#files = files;
    this.#process = process;
  }

  open(name: string, length: number): RecoveryMemory {
    this.#process.touch();
    const found = this.#files.get(name);
    const bytes = found?.length === length ? found : new Uint8Array(length);
    this.#files.set(name, bytes);
    return { bytes, close: this.#process.hold('recovery').close };
  }

  names(): string[] {
    return [...this.#files.keys()];
  }

  remove(name: string): void {
    this.#process.touch();
    this.#files.delete(name);
  }
}
