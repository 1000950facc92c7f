import { SeededRandom } from '../../support/random.ts';

const blockBytes = 1024 * 1024;

/**
 * Bytes that no mix-up of offsets leaves as they are: a seeded random block, changed from one block to the next.
 * @param bytes a multiple of 4
 */
export function seededContent(seed: number, bytes: number): Buffer<ArrayBuffer> {
  const random = new SeededRandom(seed);
  const block = Uint32Array.from({ length: blockBytes / 4 }, () => random.u32());
  const words = new Uint32Array(bytes / 4);
  for (let i = 0; i < words.length; i++) {
    const number = Math.floor(i / block.length);
    words[i] = block[i % block.length]! ^ Math.imul(number + 1, 0x9e37_79b1);
  }
  return Buffer.from(words.buffer);
}

/** The same for little data, made at once. @param bytes a multiple of 4 */
export function plainContent(seed: number, bytes: number): Uint8Array {
  const words = new Uint32Array(bytes / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e37_79b1) ^ Math.imul(seed + 1, 0x85eb_ca6b);
  return new Uint8Array(words.buffer);
}
