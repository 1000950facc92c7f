import { createInterface } from 'node:readline';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { pollNative } from '../../src/libc/native.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { headerSize, headerToken, typeResponse } from '../../src/virtio-msg/header.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import { configBytesPerMessage } from '../../src/virtio-msg/transport-messages.ts';

/**
 * One end of a message ring between two processes, as c/ring.c has it: ROLE RING-BYTES SLOT MESSAGE-BYTES, with ring
 * memory and doorbell as descriptors 3 and 4. It shows what the ring costs, so it waits in poll(2) and not on the
 * event loop.
 */
const [role = '', ...numbers] = process.argv.slice(2);
const [ringBytes = 0, slot = 0, messageBytes = 0] = numbers.map(Number);
const bell = 4;
const batch = 32;
const batchesPerLook = 64;
const spinMs = 0.02;
const sequenceAt = 8 / 4;
const pollReadable = 1;
const { bytes: memory } = Mapping.map(3, 0, 2 * ringBytes, { writable: true });
const ring = memory.subarray(0, ringBytes);
const ringBack = memory.subarray(ringBytes);
const pollfd = new Uint32Array([bell, pollReadable]);

function wait(): void {
  pollNative(pollfd, 1, -1);
  if (drainDoorbell(bell, 1) === 'closed') process.exit(0);
}

/** Whether it was asked for longer than a waiting end looks again before it sleeps. */
class Spin {
  #since = 0;

  over(): boolean {
    const at = performance.now();
    if (this.#since === 0) this.#since = at;
    return at - this.#since > spinMs;
  }

  restart(): void {
    this.#since = 0;
  }
}

function pushBatch(producer: RingProducer, message: Uint8Array, sequence: Uint32Array, spin: Spin): void {
  for (let i = 0; i < batch; ) {
    const outcome = producer.push(message);
    if (outcome === 'pushed') {
      sequence[sequenceAt]! += 1;
      i += 1;
      continue;
    }
    if (outcome === 'broken') throw new Error('the ring is broken');
    if (producer.publish()) ringDoorbell(bell);
    if (spin.over()) wait();
  }
  spin.restart();
  if (producer.publish()) ringDoorbell(bell);
}

async function produce(): Promise<void> {
  const producer = new RingProducer(ring, slot, true);
  const message = new Uint8Array(messageBytes);
  const sequence = new Uint32Array(message.buffer, 0, messageBytes >>> 2);
  const spin = new Spin();
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    const start = performance.now();
    const end = start + Number(line.split(' ').at(-1));
    let count = 0;
    do {
      for (let i = 0; i < batchesPerLook; i++) pushBatch(producer, message, sequence, spin);
      count += batchesPerLook * batch;
    } while (performance.now() < end);
    console.log(`${count} ${(performance.now() - start) / 1000}`);
  }
}

/** @returns messages taken, at most a batch */
function takeBatch(consumer: RingConsumer, message: Uint8Array, words: Uint32Array, expected: number): number {
  let taken = 0;
  for (; taken < batch && consumer.pop(message) === 'message'; taken++) {
    if (words[sequenceAt] !== (expected + taken) >>> 0) throw new Error('a message is missing');
  }
  if (consumer.release()) ringDoorbell(bell);
  return taken;
}

function consume(): never {
  const consumer = new RingConsumer(ring, slot, true);
  const message = new Uint8Array(slot);
  const words = new Uint32Array(message.buffer);
  const spin = new Spin();
  for (let sequence = 0; ; ) {
    const taken = takeBatch(consumer, message, words, sequence);
    sequence = (sequence + taken) >>> 0;
    if (taken > 0) spin.restart();
    else if (spin.over()) {
      spin.restart();
      if (consumer.sleep()) wait();
    }
  }
}

/** A SET_CONFIG request that fills the message. */
function setConfig(token: number, out: Uint8Array): void {
  const data = new Uint8Array(configBytesPerMessage(messageBytes));
  const body = { generation: 0, offset: 0, length: data.length, data };
  dialectD5.encode({ kind: 'request', name: 'SET_CONFIG', body }, 1, token, out);
}

function exchange(producer: RingProducer, consumer: RingConsumer, message: Uint8Array, slotView: Uint8Array): void {
  if (producer.push(message) !== 'pushed') throw new Error('a ring is full with one message under way');
  if (producer.publish()) ringDoorbell(bell);
  while (consumer.pop(slotView) !== 'message') if (consumer.sleep()) wait();
  consumer.release();
}

async function ping(): Promise<void> {
  const [producer, consumer] = [new RingProducer(ring, slot, true), new RingConsumer(ringBack, slot, true)];
  const [request, response] = [new Uint8Array(messageBytes), new Uint8Array(slot)];
  setConfig(1, request);
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    const start = performance.now();
    const end = start + Number(line.split(' ').at(-1));
    let count = 0;
    for (; performance.now() < end; count++) {
      exchange(producer, consumer, request, response);
      if (headerToken(response) !== 1) throw new Error('an answer to another request');
    }
    console.log(`${count} ${(performance.now() - start) / 1000}`);
  }
}

function echo(): never {
  const [consumer, producer] = [new RingConsumer(ring, slot, true), new RingProducer(ringBack, slot, true)];
  const message = new Uint8Array(slot);
  for (;;) {
    while (consumer.pop(message) === 'message') {
      message[0]! |= typeResponse;
      producer.push(message.subarray(0, headerSize(message)));
    }
    consumer.release();
    if (producer.publish()) ringDoorbell(bell);
    if (consumer.sleep()) wait();
  }
}

if (role === 'produce') await produce();
else if (role === 'ping') await ping();
else if (role === 'echo') echo();
else consume();
