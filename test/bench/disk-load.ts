import { BlkDriver, type GuestBuffer, type GuestBus } from '../../src/guest/index.ts';

const depthMax = 32;
const transferMax = 128 * 1024;
const sectorBytes = 512;
/** Shared memory that one disk needs, and its queue. */
export const diskMemoryBytes = 2 * depthMax * transferMax + 1024 * 1024;

export interface Work {
  readonly count: number;
  readonly ms: number;
}

/** The generator of c/blk.c in 32 bits. */
function xorshift32(): () => number {
  let state = 2_463_534_242;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

/**
 * A disk that is read or written at random places, without copies on this side. Its queue has a way of its own: what a
 * driver does who wants speed, and gets without asking where another program works on the queue.
 */
export class DiskLoad {
  readonly #driver: BlkDriver;
  readonly #buffers: readonly GuestBuffer[];

  private constructor(driver: BlkDriver) {
    this.#driver = driver;
    this.#buffers = Array.from({ length: depthMax }, () => driver.device.memory.alloc(transferMax, 4096));
  }

  static async open(bus: GuestBus, device: number): Promise<DiskLoad> {
    const options = { depth: depthMax, transferBytes: transferMax, notify: 'own' } as const;
    return new DiskLoad(await BlkDriver.open(bus, device, options));
  }

  /** @param words kind, bytes and depth of the load, and its milliseconds */
  async run([kind = '', bytes = '', depth = '', ms = '']: readonly string[]): Promise<Work> {
    const length = Number(bytes);
    const slots = Math.floor(this.#driver.capacityBytes / length);
    const random = xorshift32();
    const start = performance.now();
    let count = 0;
    const oneByOne = async (buffer: GuestBuffer): Promise<void> => {
      const memory = buffer.slice(0, length);
      while (performance.now() < start + Number(ms)) {
        const sector = (random() % slots) * (length / sectorBytes);
        if (kind === 'write') await this.#driver.write(sector, memory);
        else await this.#driver.read(sector, memory);
        count += 1;
      }
    };
    await Promise.all(this.#buffers.slice(0, Number(depth)).map(oneByOne));
    return { count, ms: performance.now() - start };
  }
}
