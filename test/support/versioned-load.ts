import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BlkDriver } from '../../src/guest/index.ts';
import { SeededRandom } from './random.ts';

const blockBytes = 4096;
const sectorsPerBlock = blockBytes / 512;

/** What a block holds after its write number `version`; zeroes before the first. */
export function contentOf(block: number, version: number): Uint8Array {
  const words = new Uint32Array(blockBytes / 4);
  if (version > 0) for (let i = 0; i < words.length; i++) words[i] = Math.imul(block * 65537 + version, i + 1);
  return new Uint8Array(words.buffer);
}

/** The first block of an image that is not as the last acknowledged write left it, in words. */
export function imageProblem(image: Uint8Array, versions: readonly number[]): string | undefined {
  for (const [block, version] of versions.entries()) {
    const found = image.subarray(block * blockBytes, (block + 1) * blockBytes);
    if (Buffer.compare(found, contentOf(block, version)) !== 0) return `block ${block} has not version ${version}`;
  }
  return undefined;
}

/**
 * Writes ever newer versions of blocks, several blocks at a time, each version right after the acknowledgement of the
 * one before: a request that is done again after its acknowledgement brings an old version back.
 */
export class VersionedLoad {
  /** Last acknowledged version of each block. */
  readonly versions: number[];
  submitted = 0;
  acknowledged = 0;
  #going = true;
  readonly #blk: BlkDriver;
  readonly #pauseMs: number;

  /** @param pauseMs between a write or read and the next of the same lane */
  constructor(blk: BlkDriver, blocks: number, pauseMs = 0) {
    this.#blk = blk;
    this.#pauseMs = pauseMs;
    this.versions = new Array<number>(blocks).fill(0);
  }

  stop(): void {
    this.#going = false;
  }

  /** Resolves after `stop`, when every request has its answer. @param lanes writes at a time, a divisor of the blocks */
  async run(lanes: number): Promise<void> {
    await Promise.all(Array.from({ length: lanes }, (_, i) => this.#runLane(i, lanes, new SeededRandom(i + 1))));
  }

  async #runLane(lane: number, lanes: number, random: SeededRandom): Promise<void> {
    while (this.#going) {
      const block = lane + lanes * random.below(this.versions.length / lanes);
      const version = this.versions[block]! + 1;
      this.submitted += 1;
      if (random.below(4) === 0) {
        const found = await this.#blk.read(block * sectorsPerBlock, blockBytes);
        assert.equal(Buffer.compare(found, contentOf(block, version - 1)), 0, `block ${block} has ${version - 1}`);
      } else {
        await this.#blk.write(block * sectorsPerBlock, contentOf(block, version));
        this.versions[block] = version;
      }
      this.acknowledged += 1;
      if (random.below(8) === 0) await this.#blk.flush();
      if (this.#pauseMs > 0) await sleep(this.#pauseMs);
    }
  }
}
