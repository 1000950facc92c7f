import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { QueueRunner, type QueueRunnerOwner } from '../../src/device/queue-runner.ts';
import { limits } from '../../src/kit/limits.ts';
import type { BackendRequest } from '../../src/ports/backend.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { FakeScheduler } from '../support/bridge-fakes.ts';
import { dataRange, makePair, type Pair } from '../support/virtqueue-pair.ts';

class Rig implements QueueRunnerOwner {
  readonly scheduler = new FakeScheduler();
  readonly pair: Pair;
  readonly runner: QueueRunner;
  readonly held: BackendRequest[] = [];
  readonly faults: QueueFault[] = [];
  automatic = false;
  used = 0;
  handled = 0;

  constructor(size: number, maxInFlight: number) {
    this.pair = makePair(size);
    this.runner = new QueueRunner(this.pair.device, this, this.scheduler, maxInFlight);
  }

  handle(request: BackendRequest): void {
    this.handled += 1;
    if (this.automatic) request.complete(0);
    else this.held.push(request);
  }

  cancel(): void {}

  notifyUsed(): void {
    this.used += 1;
  }

  faulted(_queue: number, fault: QueueFault): void {
    this.faults.push(fault);
  }

  offer(count: number): void {
    for (let i = 0; i < count; i++) assert.notEqual(this.pair.driver.add([dataRange(0, 16)], []), undefined);
    this.pair.driver.kick();
  }

  /** Completed chains that the driver sees. */
  completed(): number {
    let count = 0;
    for (let used = this.pair.driver.next(); used !== undefined; used = this.pair.driver.next()) {
      assert.ok(!(used instanceof QueueFault));
      count += 1;
    }
    return count;
  }
}

describe('queue runner', () => {
  test('takes at most a batch in one turn, and the rest in later ones', () => {
    const rig = new Rig(256, 1000);
    rig.offer(200);
    rig.runner.kick();
    assert.equal(rig.handled, limits.queueBatchChains);
    rig.runner.kick();
    assert.equal(rig.handled, limits.queueBatchChains, 'a kick does not jump the queue');
    rig.scheduler.nextTurn();
    assert.equal(rig.handled, 2 * limits.queueBatchChains);
    rig.scheduler.run();
    assert.equal(rig.handled, 200);
  });

  test('has at most the agreed number in flight, and goes on when some end', () => {
    const rig = new Rig(16, 3);
    rig.offer(10);
    rig.runner.kick();
    assert.deepEqual([rig.handled, rig.runner.inFlight], [3, 3]);
    rig.runner.kick();
    assert.equal(rig.handled, 3);
    let most = 0;
    while (rig.held.length > 0) {
      rig.held.shift()?.complete(0);
      rig.scheduler.run();
      most = Math.max(most, rig.runner.inFlight);
    }
    assert.deepEqual([rig.handled, most, rig.completed(), rig.runner.inFlight], [10, 3, 10, 0]);
    assert.equal(rig.runner.completedRequests, 10);
  });

  test('announces the completions of one turn once', () => {
    const rig = new Rig(16, 16);
    rig.automatic = true;
    rig.offer(8);
    rig.runner.kick();
    assert.equal(rig.completed(), 0, 'published at the end of the turn');
    rig.scheduler.run();
    assert.deepEqual([rig.completed(), rig.used], [8, 1]);
  });

  test('completions in any order arrive as they come', () => {
    const rig = new Rig(8, 8);
    rig.offer(4);
    rig.runner.kick();
    for (const i of [2, 0, 3, 1]) rig.held[i]?.complete(0);
    rig.scheduler.run();
    assert.equal(rig.completed(), 4);
    assert.equal(rig.pair.memory.openLeases, 3, 'only the rings are in use');
  });

  test('a request completed twice is a bug of the backend and is not handed on', () => {
    const rig = new Rig(8, 8);
    rig.offer(1);
    rig.runner.kick();
    rig.held[0]?.complete(0);
    assert.throws(() => rig.held[0]?.complete(0), /a request is completed once/);
    rig.scheduler.run();
    assert.equal(rig.completed(), 1);
  });

  test('a fault of the driver is told once; what is in flight stays until it ends', () => {
    const rig = new Rig(8, 8);
    rig.offer(1);
    rig.runner.kick();
    new Uint16Array(rig.pair.rings.bytes.buffer, rig.pair.rings.bytes.byteOffset + 128, 4)[1] = 100;
    rig.runner.kick();
    assert.deepEqual(
      rig.faults.map((fault) => fault.reason),
      ['avail-index'],
    );
    rig.runner.kick();
    rig.scheduler.run();
    assert.equal(rig.faults.length, 1);
    let stopped = false;
    rig.runner.stop(() => {
      stopped = true;
    });
    assert.equal(stopped, false);
    rig.held[0]?.complete(0);
    assert.equal(stopped, true);
    assert.equal(rig.pair.memory.openLeases, 0);
  });

  test('drain completes what is in flight towards the driver, takes nothing new, then ends', () => {
    const rig = new Rig(8, 2);
    rig.offer(5);
    rig.runner.kick();
    let drained = false;
    rig.runner.drain(() => {
      drained = true;
    });
    rig.held[0]?.complete(0);
    rig.held[1]?.complete(0);
    assert.equal(drained, false, 'not before the completions are published');
    rig.scheduler.run();
    assert.deepEqual([drained, rig.handled, rig.completed(), rig.used], [true, 2, 2, 1]);
    assert.equal(rig.pair.memory.openLeases, 0, 'the rings are given back');
    rig.runner.kick();
    assert.equal(rig.handled, 2);
  });

  test('drain of an idle runner ends at once', () => {
    const rig = new Rig(8, 2);
    let drained = 0;
    rig.runner.drain(() => {
      drained += 1;
    });
    assert.equal(drained, 1);
    assert.equal(rig.pair.memory.openLeases, 0);
  });

  test('stop gives up what is in flight: no completion, no notification, all memory back', () => {
    const rig = new Rig(8, 4);
    rig.offer(3);
    rig.runner.kick();
    rig.held[0]?.complete(0);
    let stopped = 0;
    rig.runner.stop(() => {
      stopped += 1;
    });
    rig.scheduler.run();
    assert.equal(stopped, 0);
    rig.held[1]?.complete(0);
    rig.held[2]?.complete(0);
    assert.equal(stopped, 1);
    rig.scheduler.run();
    assert.deepEqual([rig.completed(), rig.used, rig.runner.inFlight], [0, 0, 0]);
    assert.equal(rig.pair.memory.openLeases, 0);
  });

  for (const [first, second] of [
    ['stop', 'drain'],
    ['drain', 'stop'],
    ['stop', 'stop'],
    ['drain', 'drain'],
  ] as const) {
    for (const flushPlanned of [false, true]) {
      test(`${first} then ${second} both end, ${flushPlanned ? 'with a flush planned' : 'with a request in flight'}`, () => {
        const rig = new Rig(8, 4);
        rig.offer(1);
        rig.runner.kick();
        if (flushPlanned) rig.held[0]?.complete(0);
        const ended: string[] = [];
        rig.runner[first](() => ended.push(first));
        rig.runner[second](() => ended.push(second));
        if (!flushPlanned) rig.held[0]?.complete(0);
        rig.scheduler.run();
        assert.deepEqual(ended, [first, second]);
        assert.equal(rig.pair.memory.openLeases, 0);
      });
    }
  }

  test('a backend that completes inside handle does not recurse without bound', () => {
    const rig = new Rig(1024, 1);
    rig.automatic = true;
    rig.offer(1000);
    rig.runner.kick();
    rig.scheduler.run();
    assert.deepEqual([rig.handled, rig.completed()], [1000, 1000]);
  });
});
