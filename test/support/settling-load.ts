import assert from 'node:assert/strict';
import { type BlkDriver, VmsgError } from '../../src/guest/index.ts';
import { SeededRandom } from './random.ts';
import { contentOf } from './versioned-load.ts';

const blockBytes = 4096;
const sectorsPerBlock = blockBytes / 512;

/**
 * Writes ever newer versions of blocks through drivers that fail. What was acknowledged must be there afterwards; what was
 * under way may be.
 */
export class SettlingLoad {
  /** Version that each block has; certain after `settle`. */
  readonly versions: number[];
  acknowledged = 0;
  /** Writes that were under way when a driver failed and were carried out all the same. */
  late = 0;
  readonly #underWay = new Set<number>();
  readonly #lanes: number;
  readonly #random: SeededRandom;
  #going = true;

  /** @param lanes writes at a time, a divisor of the blocks */
  constructor(blocks: number, lanes: number, seed: number) {
    this.versions = new Array<number>(blocks).fill(0);
    this.#lanes = lanes;
    this.#random = new SeededRandom(seed);
  }

  stop(): void {
    this.#going = false;
  }

  /** Finds out what became of the writes that a driver before had under way. @throws VmsgError */
  async settle(blk: BlkDriver): Promise<void> {
    for (const block of this.#underWay) {
      const found = await blk.read(block * sectorsPerBlock, blockBytes);
      const version = this.versions[block]!;
      const isLate = Buffer.compare(found, contentOf(block, version + 1)) === 0;
      assert.ok(
        isLate || Buffer.compare(found, contentOf(block, version)) === 0,
        `block ${block} has version ${version}`,
      );
      if (isLate) {
        this.versions[block] = version + 1;
        this.late += 1;
      }
      this.#underWay.delete(block);
    }
  }

  /** Until the driver fails, or `stop`. @returns whether it failed */
  async run(blk: BlkDriver): Promise<boolean> {
    const lanes = Array.from({ length: this.#lanes }, (_, lane) => this.#runLane(blk, lane));
    return (await Promise.all(lanes)).includes(true);
  }

  async #runLane(blk: BlkDriver, lane: number): Promise<boolean> {
    while (this.#going) {
      const block = lane + this.#lanes * this.#random.below(this.versions.length / this.#lanes);
      const version = this.versions[block]!;
      try {
        if (this.#random.below(4) === 0) {
          const found = await blk.read(block * sectorsPerBlock, blockBytes);
          assert.equal(Buffer.compare(found, contentOf(block, version)), 0, `block ${block} has version ${version}`);
        } else {
          this.#underWay.add(block);
          await blk.write(block * sectorsPerBlock, contentOf(block, version + 1));
          this.#underWay.delete(block);
          this.versions[block] = version + 1;
        }
        this.acknowledged += 1;
        if (this.#random.below(8) === 0) await blk.flush();
      } catch (error) {
        if (error instanceof VmsgError) return true;
        throw error;
      }
    }
    return false;
  }
}
