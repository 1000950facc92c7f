import { assert } from '../kit/assert.ts';

/**
 * The message ring of docs/protocol/loopback.md: one producer, one consumer, fixed slots in shared memory.
 * Both sides keep their own index privately; what the peer writes is checked before use. JavaScript
 * atomics are sequentially consistent, which the sleep word and the full-ring doorbell rely on.
 */
const headWord = 0;
const tailWord = 16;
const sleepWord = 17;
/** Bytes before the first slot: indexes and sleep word. */
export const ringHeaderBytes = 128;

/** Slots are whole cache lines down to eight bytes, and hold the largest message. */
export const slotBytes = (maxMessageSize: number): number => Math.max(64, (maxMessageSize + 7) & ~7);
export const ringCapacity = (ringBytes: number, slot: number): number =>
  Math.floor((ringBytes - ringHeaderBytes) / slot);
/** Bytes of a ring with at least `slots` usable slots; one slot always stays empty. */
export const ringBytesFor = (slots: number, slot: number): number => ringHeaderBytes + (slots + 1) * slot;

interface RingParts {
  readonly words: Uint32Array;
  readonly slots: readonly Uint8Array[];
}

function parts(memory: Uint8Array, slot: number): RingParts {
  assert(memory.byteOffset % 64 === 0, 'a ring starts on a 64-byte boundary');
  const capacity = ringCapacity(memory.length, slot);
  assert(capacity >= 2, 'a ring has at least two slots');
  return {
    words: new Uint32Array(memory.buffer, memory.byteOffset, ringHeaderBytes / 4),
    slots: Array.from({ length: capacity }, (_, i) =>
      memory.subarray(ringHeaderBytes + i * slot, ringHeaderBytes + (i + 1) * slot),
    ),
  };
}

/** The peer wrote an index that no correct peer writes; the ring cannot be used any more. */
export const ringBroken = 'broken';

export class RingProducer {
  readonly #words: Uint32Array;
  readonly #slots: readonly Uint8Array[];
  readonly #sleepNegotiated: boolean;
  #head = 0;
  #published = 0;
  #announced = true;

  /** @param memory the whole ring, zeroed by its creator */
  constructor(memory: Uint8Array, slot: number, sleepNegotiated: boolean) {
    const { words, slots } = parts(memory, slot);
    this.#words = words;
    this.#slots = slots;
    this.#sleepNegotiated = sleepNegotiated;
  }

  /**
   * Copies a message into the next slot. The consumer need not see it before `publish`, which also has to follow
   * a 'full'; after that the consumer rings when it has made room.
   */
  push(message: Uint8Array): 'pushed' | 'full' | typeof ringBroken {
    const capacity = this.#slots.length;
    const next = this.#head + 1 === capacity ? 0 : this.#head + 1;
    let tail = Atomics.load(this.#words, tailWord);
    if (next === tail && this.#published !== this.#head) {
      // The consumer knows a full ring by the head it can see: show all of it, then look again.
      this.#show();
      tail = Atomics.load(this.#words, tailWord);
    }
    if (tail >= capacity) return ringBroken;
    if (next === tail) return 'full';
    const slot = this.#slots[this.#head]!;
    slot.set(message);
    if (message.length < slot.length) slot.fill(0, message.length);
    this.#head = next;
    this.#announced = false;
    return 'pushed';
  }

  #show(): void {
    this.#published = this.#head;
    Atomics.store(this.#words, headWord, this.#head);
  }

  /** Makes what was pushed visible. @returns whether the consumer needs its doorbell */
  publish(): boolean {
    if (this.#announced) return false;
    this.#announced = true;
    this.#show();
    if (!this.#sleepNegotiated) return true;
    return Atomics.load(this.#words, sleepWord) !== 0 && Atomics.exchange(this.#words, sleepWord, 0) !== 0;
  }
}

export class RingConsumer {
  readonly #words: Uint32Array;
  readonly #slots: readonly Uint8Array[];
  readonly #sleepNegotiated: boolean;
  #tail = 0;
  #released = 0;

  constructor(memory: Uint8Array, slot: number, sleepNegotiated: boolean) {
    const { words, slots } = parts(memory, slot);
    this.#words = words;
    this.#slots = slots;
    this.#sleepNegotiated = sleepNegotiated;
  }

  /** Copies the next slot into `target`, which holds at least a slot. Nothing is read from it again. */
  pop(target: Uint8Array): 'message' | 'empty' | typeof ringBroken {
    const head = Atomics.load(this.#words, headWord);
    if (head === this.#tail) return 'empty';
    if (head >= this.#slots.length) return ringBroken;
    target.set(this.#slots[this.#tail]!);
    this.#tail = this.#tail + 1 === this.#slots.length ? 0 : this.#tail + 1;
    return 'message';
  }

  /**
   * Gives the slots read so far back to the producer.
   * @returns whether the ring may have looked full to the producer, which then waits for a doorbell
   */
  release(): boolean {
    if (this.#released === this.#tail) return false;
    const before = this.#released;
    this.#released = this.#tail;
    Atomics.store(this.#words, tailWord, this.#tail);
    // Read after the store: a producer that saw the old tail as full has stored this head before.
    const head = Atomics.load(this.#words, headWord);
    return (head + 1 === this.#slots.length ? 0 : head + 1) === before;
  }

  /** Announces that this side waits for a doorbell. @returns false when messages arrived meanwhile: pop again */
  sleep(): boolean {
    if (this.#sleepNegotiated) Atomics.store(this.#words, sleepWord, 1);
    return Atomics.load(this.#words, headWord) === this.#tail;
  }
}
