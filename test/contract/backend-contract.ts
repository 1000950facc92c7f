import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Backend } from '../../src/ports/backend.ts';
import { blkHead } from '../support/bridge-disk.ts';
import { run, split, TestRequest } from '../support/bridge-request.ts';
import { Prng } from '../support/virtqueue-pair.ts';

const bytes = (length: number, value = 0xff): Uint8Array => new Uint8Array(length).fill(value);
const u64max = 0xffff_ffff_ffff_ffffn;

type Shape = { readonly readable: readonly Uint8Array[]; readonly writable: readonly number[] };

/** What a guest can put into a queue to see whether somebody trips; the heads are those of a block device. */
const hostileShapes: Readonly<Record<string, Shape>> = {
  'nothing at all': { readable: [], writable: [] },
  'nothing writable': { readable: [blkHead(0, 0n)], writable: [] },
  'nothing readable': { readable: [], writable: [512, 1] },
  'one byte each way': { readable: [bytes(1)], writable: [1] },
  'a head that is too short': { readable: [blkHead(0, 0n).subarray(0, 15)], writable: [513] },
  'zero-length parts': { readable: [bytes(0), blkHead(0, 0n), bytes(0)], writable: [0, 512, 0, 1, 0] },
  'only zero-length parts': { readable: [bytes(0)], writable: [0, 0] },
  'a head in single bytes': { readable: split(blkHead(0, 0n), ...new Array(15).fill(1)), writable: [513] },
  'many tiny writable parts': { readable: [blkHead(0, 0n)], writable: new Array(513).fill(1) },
  'a length that is no whole sector': { readable: [blkHead(0, 0n)], writable: [100, 1] },
  'a sector far outside': { readable: [blkHead(0, u64max)], writable: [512, 1] },
  'a sector with bit 63': { readable: [blkHead(0, 1n << 63n)], writable: [512, 1] },
  'a sector that overflows as bytes': { readable: [blkHead(0, 1n << 55n)], writable: [512, 1] },
  'a write far outside': { readable: [blkHead(1, u64max), bytes(512)], writable: [1] },
  'a write of part of a sector': { readable: [blkHead(1, 0n), bytes(3)], writable: [1] },
  'a write without data': { readable: [blkHead(1, 0n)], writable: [1] },
  'a write with room for data': { readable: [blkHead(1, 0n), bytes(512)], writable: [512, 1] },
  'a flush with data': { readable: [blkHead(4, 7n), bytes(100)], writable: [100, 1] },
  'an id with no room': { readable: [blkHead(8, 0n)], writable: [1] },
  'an id with little room': { readable: [blkHead(8, 0n)], writable: [5, 1] },
  'an id with much room': { readable: [blkHead(8, 0n)], writable: [4096] },
  'an unknown type': { readable: [blkHead(0xffffffff, 0n)], writable: [512, 1] },
  'a discard that was not offered': { readable: [blkHead(11, 0n), bytes(16)], writable: [1] },
  'much memory': { readable: [blkHead(0, 0n)], writable: [1 << 20, 1] },
};

function randomShape(prng: Prng): Shape {
  const head = blkHead(prng.pick([0, 1, 4, 8, prng.u32()]), BigInt(prng.pick([0, 1, 2, 3, 2048, prng.u32()])));
  const cuts = Array.from({ length: prng.below(4) }, () => prng.below(9));
  const data = Array.from({ length: prng.below(3) }, () => bytes(prng.pick([0, 1, 512, 1024, prng.below(600)]), 1));
  return {
    readable: prng.chance(0.9)
      ? [...split(head.subarray(0, prng.chance(0.9) ? 16 : prng.below(16)), ...cuts), ...data]
      : [],
    writable: Array.from({ length: prng.below(4) }, () => prng.pick([0, 1, 511, 512, 513, 1024, prng.below(600)])),
  };
}

type WithBackend = (act: (backend: Backend) => Promise<void> | void, activate?: boolean) => Promise<void>;

/** What every backend has to fulfil, whatever it serves (ports/backend.ts). */
export function backendContract(name: string, makeBackend: () => Promise<Backend>): void {
  const withBackend: WithBackend = async (act, activate = true) => {
    const backend = await makeBackend();
    if (activate) backend.activate((bit) => backend.description.featureBits.includes(bit));
    try {
      await act(backend);
    } finally {
      if (activate) backend.deactivate();
      await backend.close();
    }
  };
  describe(`backend contract: ${name}`, () => {
    test('the description is sane, and constant', () => withBackend(describesItself));
    requestTests(withBackend);
    lifeTests(withBackend, makeBackend);
  });
}

function describesItself(backend: Backend): void {
  const { description } = backend;
  const { deviceType, uuid, featureBits, queueSizes, config, maxInFlight } = description;
  assert.ok(Number.isInteger(deviceType) && deviceType > 0);
  assert.equal(uuid.length, 16);
  assert.ok(featureBits.every((bit) => (bit >= 0 && bit <= 23) || (bit >= 50 && bit <= 127)));
  assert.equal(new Set(featureBits).size, featureBits.length);
  assert.ok(queueSizes.length >= 1 && queueSizes.length <= 64);
  assert.ok(queueSizes.every((size) => size >= 1 && size <= 1024 && (size & (size - 1)) === 0));
  assert.ok(config.length <= 1024);
  assert.ok(Number.isInteger(maxInFlight) && maxInFlight >= 1);
  const copy = structuredClone(description);
  backend.deactivate();
  backend.activate(() => false);
  assert.deepEqual(backend.description, copy);
}

function requestTests(withBackend: WithBackend): void {
  for (const [shapeName, shape] of Object.entries(hostileShapes)) {
    test(`completes exactly once: ${shapeName}`, () =>
      withBackend(async (backend) => {
        const request = new TestRequest(shape.readable, shape.writable);
        await run(backend, request);
        await new Promise((resolve) => setImmediate(resolve));
        assert.equal(request.completions, 1);
        await run(backend, new TestRequest([blkHead(8, 0n)], [21]));
      }));
  }

  test('any mixture of shapes is completed, with as many in flight as it takes', () =>
    withBackend(async (backend) => {
      const prng = new Prng(4711);
      for (let round = 0; round < 40; round++) {
        const count = Math.min(backend.description.maxInFlight, 8);
        const requests = Array.from({ length: count }, () => randomShape(prng)).map(
          ({ readable, writable }) => new TestRequest(readable, writable),
        );
        await Promise.all(requests.map((request) => run(backend, request)));
      }
    }));
}

function lifeTests(withBackend: WithBackend, makeBackend: () => Promise<Backend>): void {
  test('a write to the configuration is applied or refused, never thrown', () =>
    withBackend((backend) => {
      const { config } = backend.description;
      for (const [offset, length] of [
        [0, 1],
        [Math.max(0, config.length - 1), 1],
        [0, config.length],
      ] as const) {
        assert.equal(typeof backend.writeConfig(offset, bytes(length)), 'boolean');
      }
    }));

  test('it can be activated and deactivated any number of times', () =>
    withBackend(async (backend) => {
      for (let i = 0; i < 3; i++) {
        backend.activate(() => false);
        await run(backend, new TestRequest([blkHead(0, 0n)], [512, 1]));
        backend.deactivate();
      }
    }, false));

  test('close resolves when nothing of it is at work any more', async () => {
    const backend = await makeBackend();
    backend.activate(() => false);
    const requests = Array.from(
      { length: Math.min(8, backend.description.maxInFlight) },
      () => new TestRequest([blkHead(0, 0n)], [512, 1]),
    );
    for (const request of requests) backend.handle(request);
    await backend.close();
    assert.ok(requests.every((request) => request.completions === 1));
  });

  test('an unused one can be closed', async () => {
    await (await makeBackend()).close();
  });
}
