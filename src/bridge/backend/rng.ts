import { close, constants, fstat, open, read } from 'node:fs';
import { promisify } from 'node:util';
import { VmsgError } from '../../kit/errors.ts';
import type { Random } from '../../kit/random.ts';
import type { Backend, BackendDescription, BackendHost, BackendRequest } from '../../ports/backend.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { bridgeVendorId } from './vendor.ts';

/** Where entropy comes from. `done` gets the number of bytes filled, at least 1, or an error. */
export interface EntropySource {
  fill(target: Uint8Array, done: (error: Error | null, bytes: number) => void): void;
  close(): Promise<void>;
}

/** Most bytes of one request; a driver asks again for more. */
const requestMaxBytes = 64 * 1024;
const kernelEntropy = '/dev/urandom';

/** Entropy device (virtio 1.3, 5.4). */
export class RngBackend implements Backend {
  readonly description: BackendDescription = {
    deviceType: deviceId.rng,
    vendorId: bridgeVendorId,
    uuid: new Uint8Array(16),
    featureBits: [],
    queueSizes: [64],
    config: new Uint8Array(0),
    maxInFlight: 1,
  };
  readonly #source: EntropySource;
  readonly #host: BackendHost;

  constructor(source: EntropySource, host: BackendHost) {
    this.#source = source;
    this.#host = host;
  }

  activate(): void {}

  handle(request: BackendRequest): void {
    const target = request.writable.find((part) => part.length > 0)?.subarray(0, requestMaxBytes);
    if (target === undefined) {
      request.complete(0);
      return;
    }
    this.#source.fill(target, (error, bytes) => {
      // Before the completion: that may end a reset of the device, and a fault after it would look like a new one.
      if (error !== null) this.#host.failed(`the entropy source failed: ${error.message}`);
      request.complete(error === null ? bytes : 0);
    });
  }

  writeConfig(): boolean {
    return false;
  }

  deactivate(): void {}

  close(): Promise<void> {
    return this.#source.close();
  }
}

/** @throws VmsgError backend-unusable */
export async function openRng(spec: { readonly source: string }, random: Random, host: BackendHost): Promise<Backend> {
  return new RngBackend(spec.source === kernelEntropy ? fromRandom(random) : await fromDevice(spec.source), host);
}

const fromRandom = (random: Random): EntropySource => ({
  fill(target, done) {
    random.fill(target);
    done(null, target.length);
  },
  async close() {},
});

/** A character device such as /dev/hwrng. A regular file would repeat itself, so it is refused. */
async function fromDevice(path: string): Promise<EntropySource> {
  const refuse = (why: string): never => {
    throw new VmsgError('backend-unusable', `${path}: ${why}`);
  };
  const fd = await promisify(open)(path, constants.O_RDONLY, 0).catch((error: NodeJS.ErrnoException) =>
    refuse(`cannot be opened (${error.code})`),
  );
  try {
    const stat = await promisify(fstat)(fd);
    if (!stat.isCharacterDevice()) refuse('not a character device');
  } catch (error) {
    await promisify(close)(fd);
    throw error;
  }
  let reading: Promise<void> = Promise.resolve();
  return {
    fill(target, done) {
      reading = new Promise((resolve) => {
        read(fd, target, 0, target.length, null, (error, bytes) => {
          if (error === null && bytes === 0) done(new Error(`${path} gives no bytes`), 0);
          else done(error, bytes);
          resolve();
        });
      });
    },
    close: () => reading.then(() => promisify(close)(fd)),
  };
}
