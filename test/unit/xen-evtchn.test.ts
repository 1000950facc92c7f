import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { EventDevice } from '../support/event-device.ts';

const dom0 = asDomid(0)!;

describe('event channels of a thread', () => {
  test('each port is served and then written back; one that nobody listens to as well', () => {
    const kernel = new EventDevice();
    const served: number[] = [];
    for (const name of [1, 2, 3]) kernel.channels.bindUnbound(dom0, () => served.push(name));
    kernel.raise(3, 99, 1);
    kernel.run();
    assert.deepEqual(served, [3, 1]);
    assert.deepEqual(kernel.finished(), [3, 99, 1]);
    kernel.close();
    assert.deepEqual(kernel.unbound, [1, 2, 3]);
  });

  test('an exception of one listener reaches the event loop, and the others are served all the same', async () => {
    const kernel = new EventDevice();
    const served: number[] = [];
    const failure = new Error('as planned');
    kernel.channels.bindUnbound(dom0, () => {
      throw failure;
    });
    kernel.channels.bindUnbound(dom0, () => served.push(2));
    kernel.channels.bindUnbound(dom0, () => served.push(3));
    kernel.raise(2, 1, 3);
    assert.throws(() => kernel.run(), failure);
    assert.deepEqual(served, [2]);
    assert.deepEqual(kernel.finished(), [2, 1]);
    await turn();
    assert.deepEqual(served, [2, 3]);
    assert.deepEqual(kernel.finished(), [3]);
    kernel.close();
  });

  test('a listener may close all channels', () => {
    const kernel = new EventDevice();
    const served: number[] = [];
    kernel.channels.bindUnbound(dom0, () => kernel.channels.close());
    kernel.channels.bindUnbound(dom0, () => served.push(2));
    kernel.raise(1, 2);
    kernel.run();
    assert.deepEqual([served, kernel.finished()], [[], []]);
    kernel.close();
  });

  test('nothing to read is no failure', () => {
    const kernel = new EventDevice();
    kernel.run();
    assert.deepEqual(kernel.finished(), []);
    kernel.close();
  });
});
