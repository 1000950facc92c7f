import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type { DeviceModel, DeviceState } from '../../src/device/model.ts';
import { type DeviceEffect, initialState, step } from '../../src/device/state.ts';
import { limits } from '../../src/kit/limits.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { status } from '../../src/virtio/status.ts';
import type { TransportRequest } from '../../src/virtio-msg/transport-messages.ts';

const model: DeviceModel = {
  deviceType: 42,
  vendorId: 1,
  uuid: new Uint8Array(16),
  offered: FeatureSet.of(0, 5, feature.VERSION_1, feature.ACCESS_PLATFORM, feature.RING_RESET),
  featureBlockCount: 2,
  queueMaxSizes: [16, 0, 2048],
  maxMessageSize: 64,
  sharedMemory: new Map(),
};
const ringReset = 1 << (feature.RING_RESET - 32);

/** Values that matter, more often than chance would bring them. */
const index = fc.oneof({ weight: 6, arbitrary: fc.constantFrom(0, 1, 2) }, fc.constantFrom(3, 0x7fffffff, 0xffffffff));
const u32 = fc.oneof(fc.nat(64), fc.constantFrom(0x7fffffff, 0x80000000, 0xffffffff), fc.nat());
const address = fc.oneof(
  { weight: 9, arbitrary: fc.constantFrom(0n, 0x1_0000_0000_0000n, 0x8000_0000_0000_0000n) },
  fc.bigInt(0n, 0xffff_ffff_ffff_ffffn),
);
const request = <N extends TransportRequest['name']>(
  name: N,
  body: fc.Arbitrary<Extract<TransportRequest, { name: N }>['body']>,
): fc.Arbitrary<Action> =>
  body.map((value) => ({ kind: 'request', request: { kind: 'request', name, body: value } as TransportRequest }));

type Action =
  | { readonly kind: 'request'; readonly request: TransportRequest }
  | { readonly kind: 'effect-done' }
  | { readonly kind: 'fault' }
  | { readonly kind: 'config-changed'; readonly offset: number; readonly data: Uint8Array };

const record = <T>(shape: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> =>
  fc.record(shape, { noNullPrototype: true }) as unknown as fc.Arbitrary<T>;

const blocks = fc.oneof(
  { weight: 12, arbitrary: fc.constantFrom([0, 3], [1, 3], [0, 3 | ringReset]).map((words) => [...words]) },
  fc.array(fc.nat(0xff), { maxLength: 4 }),
);
const data = fc.uint8Array({ maxLength: 12 });

const action: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 8,
    arbitrary: request(
      'SET_DEVICE_STATUS',
      record({ status: fc.oneof({ weight: 20, arbitrary: fc.constantFrom(0, 3, 11, 11, 15, 15) }, u32) }),
    ),
  },
  {
    weight: 4,
    arbitrary: request(
      'SET_DRIVER_FEATURES',
      fc
        .tuple(fc.oneof({ weight: 20, arbitrary: fc.constant(0) }, u32), blocks)
        .map(([blockIndex, words]) => ({ blockIndex, blockCount: words.length, blocks: words })),
    ),
  },
  {
    weight: 6,
    arbitrary: request(
      'SET_VQUEUE',
      record({
        index,
        flags: fc.oneof({ weight: 9, arbitrary: fc.constantFrom(0, 1, 1, 2, 0x3d) }, fc.nat(0x7f), u32),
        size: fc.oneof({ weight: 9, arbitrary: fc.constantFrom(1, 8, 16) }, u32),
        reserved: fc.oneof({ weight: 20, arbitrary: fc.constant(0) }, u32),
        descAddr: address,
        driverAddr: address,
        deviceAddr: address,
      }),
    ),
  },
  { weight: 2, arbitrary: request('RESET_VQUEUE', record({ index })) },
  request('GET_VQUEUE', record({ index })),
  request('GET_DEVICE_STATUS', fc.constant({})),
  request('GET_DEVICE_INFO', fc.constant({})),
  request('GET_SHM', record({ index: u32 })),
  request('GET_DEVICE_FEATURES', record({ blockIndex: u32, blockCount: u32 })),
  request('GET_CONFIG', record({ offset: u32, length: u32 })),
  request(
    'SET_CONFIG',
    fc.tuple(u32, u32, data).map(([generation, offset, bytes]) => ({
      generation,
      offset,
      length: bytes.length,
      data: bytes,
    })),
  ),
  { weight: 3, arbitrary: fc.constant<Action>({ kind: 'effect-done' }) },
  fc.nat(7).map<Action>((n) => ({ kind: n === 0 ? 'fault' : 'effect-done' })),
  fc
    .tuple(fc.nat(20), fc.uint8Array({ maxLength: 10 }))
    .map<Action>(([offset, bytes]) => ({ kind: 'config-changed', offset, data: bytes })),
);

/** Plays host and checks what must hold after every step. */
class Watcher {
  state: DeviceState = initialState(model, new Uint8Array(30));
  /** Requests without an answer: 0 or 1. */
  open = 0;
  /** Effects that the host still has to end. */
  readonly pending: DeviceEffect[] = [];
  readonly running = new Set<number>();
  active = false;

  apply(next: Action, deferResets: boolean): void {
    switch (next.kind) {
      case 'request':
        // The host gives the next request only after the answer to the one before.
        while (this.open > 0) this.#endOne();
        this.open = 1;
        this.#step({ kind: 'request', request: next.request });
        if (deferResets && this.pending.some((effect) => effect.kind === 'reset') && this.open > 0) {
          this.#step({ kind: 'reset-deferred' });
          assert.equal(this.open, 0, 'a reset that goes on is answered');
          assert.notEqual(this.state.status, 0);
        }
        return;
      case 'effect-done':
        if (this.pending.length > 0) this.#endOne();
        return;
      default:
        this.#step(next);
    }
  }

  #endOne(): void {
    const effect = this.pending.shift();
    assert.ok(effect !== undefined, 'an unanswered request waits for an effect');
    if (effect.kind === 'reset') {
      this.active = false;
      this.running.clear();
      this.#step({ kind: 'reset-done' });
      assert.equal(this.state.status, 0);
      assert.ok(this.state.queues.every((queue) => !queue.enabled && queue.size === 0));
    } else if (effect.kind === 'stop-queue') {
      this.running.delete(effect.index);
      this.#step({ kind: 'queue-stopped', index: effect.index });
    } else if (effect.kind === 'write-config') {
      this.#step({ kind: 'config-written', accepted: effect.offset % 2 === 0 });
    }
  }

  #step(input: Parameters<typeof step>[2]): void {
    const before = this.state;
    const { state, effects } = step(model, before, input);
    this.state = state;
    this.#checkStatus(before, input.kind === 'reset-done');
    this.#checkQueues();
    for (const effect of effects) this.#perform(effect);
  }

  #checkStatus(before: DeviceState, wasReset: boolean): void {
    const { status: now } = this.state;
    if (!wasReset) assert.equal(now & before.status, before.status, 'only a reset clears status bits');
    if (now & status.DRIVER_OK) assert.ok(now & status.FEATURES_OK, 'DRIVER_OK implies FEATURES_OK');
    if (now & status.FEATURES_OK && !this.state.resetting) {
      assert.ok(this.state.driverFeatures.isSubsetOf(model.offered));
      assert.ok(this.state.driverFeatures.has(feature.VERSION_1));
      assert.ok(this.state.driverFeatures.has(feature.ACCESS_PLATFORM));
    }
    assert.equal(now & ~0xcf, 0, 'no undefined status bit');
  }

  #checkQueues(): void {
    for (const [i, queue] of this.state.queues.entries()) {
      const most = Math.min(model.queueMaxSizes[i] ?? 0, limits.queueSizeMax);
      assert.ok(queue.size <= most && (queue.size & (queue.size - 1)) === 0, `size ${queue.size}`);
      if (!queue.enabled) continue;
      assert.ok(queue.size > 0, 'an enabled queue has a size');
      assert.ok(this.state.status & status.FEATURES_OK || this.state.resetting);
      assert.deepEqual([queue.descAddr & 15n, queue.driverAddr & 1n, queue.deviceAddr & 3n], [0n, 0n, 0n]);
    }
  }

  #perform(effect: DeviceEffect): void {
    switch (effect.kind) {
      case 'respond':
      case 'refuse':
        assert.equal(this.open, 1, 'a response has its request');
        this.open = 0;
        return;
      case 'activate':
        assert.equal(this.active, false, 'activated once between resets');
        this.active = true;
        return;
      case 'start-queue':
        assert.ok(this.active && this.state.queues[effect.index]?.enabled, 'a queue starts in a running device');
        assert.ok(!this.running.has(effect.index), 'and only once');
        this.running.add(effect.index);
        return;
      case 'stop-queue':
        assert.ok(this.running.has(effect.index), 'a queue that runs is stopped');
        this.pending.push(effect);
        return;
      case 'halt':
        assert.ok(this.state.status & status.DEVICE_NEEDS_RESET);
        return;
      case 'event':
        assert.ok(this.state.status & status.DRIVER_OK, 'events only to a driver that is ready');
        return;
      default:
        this.pending.push(effect);
    }
  }
}

describe('device state machine', () => {
  for (const deferResets of [false, true]) {
    test(`keeps its invariants under any sequence of inputs, resets ${deferResets ? 'deferred' : 'at once'}`, () => {
      const seen = { driverOk: 0, queues: 0, needsReset: 0 };
      fc.assert(
        fc.property(fc.array(action, { minLength: 60, maxLength: 120, size: 'max' }), (actions) => {
          const watcher = new Watcher();
          for (const next of actions) {
            watcher.apply(next, deferResets);
            if (watcher.state.status & status.DRIVER_OK) seen.driverOk += 1;
            if (watcher.running.size > 0) seen.queues += 1;
            if (watcher.state.status & status.DEVICE_NEEDS_RESET) seen.needsReset += 1;
          }
        }),
        { seed: 20260801, numRuns: 800 },
      );
      // A walk that never gets anywhere would prove nothing.
      assert.ok(seen.driverOk > 1000 && seen.queues > 100 && seen.needsReset > 1000, JSON.stringify(seen));
    });
  }

  test('the initial state is a device in reset', () => {
    const state = initialState(model, new Uint8Array(3));
    assert.deepEqual([state.status, state.generation, state.resetting, state.waiting], [0, 0, false, null]);
    assert.equal(state.queues.length, 3);
  });

  test('the generation wraps at 32 bits', () => {
    const state = { ...initialState(model, new Uint8Array(3)), generation: 0xffffffff };
    const next = step(model, state, { kind: 'config-changed', offset: 0, data: Uint8Array.of(1) });
    assert.equal(next.state.generation, 0);
  });

  test('a state is a value: steps do not modify it', () => {
    const state = initialState(model, new Uint8Array(3));
    const before = structuredClone({ ...state, driverFeatures: state.driverFeatures.toBlocks() });
    step(model, state, { kind: 'config-changed', offset: 0, data: Uint8Array.of(1) });
    step(model, state, { kind: 'fault' });
    assert.deepEqual({ ...state, driverFeatures: state.driverFeatures.toBlocks() }, before);
  });
});
