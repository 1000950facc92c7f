import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { limits } from '../../src/kit/limits.ts';
import { TestRequest } from '../support/bridge-request.ts';
import { ConsoleRig, control, TestMemory } from '../support/console-end.ts';

const size = { columns: 0x8001, rows: 40 };

describe('console control: the guest is told', () => {
  test('nothing before it is ready, then every port; of each that it sets up, all there is to know', () => {
    const rig = new ConsoleRig({ names: ['con', 'data', ''], size });
    assert.deepEqual(rig.told(), []);
    rig.tell(0, 0, 1);
    assert.deepEqual(rig.told(), [
      [0, 1, 1, ''],
      [1, 1, 1, ''],
      [2, 1, 1, ''],
    ]);
    rig.ends[1]!.connect();
    assert.deepEqual(rig.told(), [], 'a port that is not set up');
    for (const port of [0, 1, 2]) rig.tell(port, 3, 1);
    assert.deepEqual(rig.told(), [
      [0, 4, 1, ''],
      [0, 7, 1, 'con'],
      [0, 6, 0, ''],
      [0, 5, 0, '\x01\x80\x28\x00'],
      [1, 7, 1, 'data'],
      [1, 6, 0, ''],
      [1, 6, 1, ''],
      [2, 6, 0, ''],
    ]);
  });

  test('the host side opens and closes; sessions stay apart, and no list grows', () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    end.leave();
    assert.deepEqual(rig.told(), [], 'a session that nobody heard of');
    end.connect();
    assert.deepEqual(rig.told(), [[1, 6, 1, '']]);
    for (let i = 0; i < 50; i++) {
      end.leave();
      end.connect();
    }
    assert.deepEqual(rig.told(), [
      [1, 6, 0, ''],
      [1, 6, 1, ''],
    ]);
    end.leave();
    assert.deepEqual(rig.told(), [[1, 6, 0, '']]);
  });

  test('a name is cut to the buffer; buffers that are too small are given back and used for nothing', () => {
    const rig = new ConsoleRig({ names: ['con', 'a long name'] });
    rig.ready();
    rig.tell(1, 3, 1);
    assert.equal(rig.offer(2, 11).completions, 1);
    const buffer = rig.offer(2, 5, 8);
    assert.equal(Buffer.from(buffer.written()).subarray(8).toString(), 'a lon');
  });

  test('the window: config space, and a message for port 0 alone', () => {
    const rig = new ConsoleRig({ size: { columns: 80, rows: 24 } });
    assert.deepEqual([...rig.backend.description.config], [80, 0, 24, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    rig.ready(0, 1);
    rig.ends[1]!.events?.resized({ columns: 1, rows: 1 });
    assert.deepEqual([rig.configs, rig.told()], [[], []]);
    rig.ends[0]!.events?.resized({ columns: 0x1234, rows: 0x8000 });
    assert.deepEqual(rig.configs, [{ offset: 0, data: [0x34, 0x12, 0, 0x80] }]);
    assert.deepEqual(rig.told(), [[0, 5, 0, '\x34\x12\x00\x80']]);
    assert.equal(rig.backend.writeConfig(), false);
  });

  test('a device without a size offers none', () => {
    const rig = new ConsoleRig();
    assert.deepEqual(rig.backend.description.featureBits, [1]);
    rig.backend.resize(size);
    assert.deepEqual(rig.configs, []);
    assert.deepEqual(new ConsoleRig({ size }).backend.description.featureBits, [0, 1]);
  });
});

describe('console control: a hostile guest', () => {
  const port = fc.oneof(fc.nat(3), fc.constantFrom(0x7fffffff, 0x80000000, 0xffffffff));
  const event = fc.oneof(fc.nat(9), fc.constantFrom(0x8000, 0xffff));
  const value = fc.oneof(fc.nat(2), fc.constantFrom(0x8000, 0xffff));
  const bytes = fc.oneof(
    { weight: 3, arbitrary: fc.tuple(port, event, value).map(([p, e, v]) => control(p, e, v)) },
    fc.tuple(port, event, value, fc.uint8Array({ maxLength: 40 })).map(([p, e, v, tail]) => control(p, e, v, tail)),
    fc.uint8Array({ maxLength: 30 }),
  );

  test('any messages are completed, and what is told stays bounded', () => {
    fc.assert(
      fc.property(fc.array(bytes, { maxLength: 200 }), (messages) => {
        const rig = new ConsoleRig({ names: ['con', 'data', 'x'], size });
        rig.ends[2]!.connect();
        for (const message of messages) {
          const cut = Math.floor(message.length / 2);
          const request = new TestRequest([message.subarray(0, cut), message.subarray(cut)], [], 3);
          rig.backend.handle(request);
          assert.equal(request.completions, 1);
        }
        assert.ok(rig.told().length <= 6 * 3);
        rig.backend.cancel(2);
        rig.backend.deactivate();
        rig.activate();
        rig.ready(0, 1, 2);
        const end = rig.ends[2]!;
        if (!end.connected) end.connect();
        rig.give(7, 'works');
        assert.equal(end.heard, 'works');
      }),
      { numRuns: 100, seed: 53 },
    );
  });

  test('a flood of one message makes nothing grow', () => {
    const rig = new ConsoleRig({ size });
    rig.ready(0, 1);
    for (let i = 0; i < 20_000; i++) rig.tell(i & 1, 3, 1);
    assert.equal(rig.told().length, 4 + 3 - 1);
    const keeps = rig.memory.keeps;
    for (let i = 0; i < 1000; i++) rig.tell(1, 6, 1);
    for (let i = 0; i < 1000; i++) rig.tell(0, 0, 1);
    assert.equal(rig.memory.keeps, keeps, 'what does not change is not written again');
  });

  test('without MULTIPORT control messages mean nothing', () => {
    const rig = new ConsoleRig({ multiport: false });
    rig.tell(0, 0, 1);
    rig.tell(1, 3, 1);
    rig.tell(1, 6, 1);
    rig.tell(0, 6, 0);
    const buffer = rig.offer(2, 64);
    assert.equal(rig.memory.keeps, 0);
    rig.ends[0]!.connect();
    rig.give(1, 'still open');
    assert.equal(rig.ends[0]!.heard, 'still open');
    rig.backend.cancel(2);
    assert.ok(buffer.released);
  });
});

describe('console control: a restart', () => {
  test('the guest is not asked anything: its open ports work, and it is told the state anew', () => {
    const before = new ConsoleRig({ names: ['con', 'a', 'b'] });
    before.ready(0, 2);
    assert.ok(before.memory.kept.length <= limits.backendMemoryMaxBytes);
    const memory = new TestMemory();
    memory.kept = before.memory.kept;
    const rig = new ConsoleRig({ names: ['con', 'a', 'b'], memory });
    rig.ends[2]!.connect();
    rig.ends[1]!.connect();
    for (const queue of [4, 6]) rig.offer(queue, 8);
    rig.ends[2]!.send('2');
    rig.ends[1]!.send('1');
    assert.deepEqual(
      rig.ends.map((end) => end.reads > 0),
      [false, false, true],
    );
    assert.deepEqual(
      rig.told().map(([id, event]) => [id, event]),
      [
        [0, 1],
        [1, 1],
        [2, 1],
      ],
    );
    rig.tell(2, 3, 1);
    assert.deepEqual(rig.told(), [
      [2, 7, 1, 'b'],
      [2, 6, 0, ''],
      [2, 6, 1, ''],
    ]);
  });

  test('a guest that was not ready starts afresh, as does one with other bytes', () => {
    for (const kept of [[], [0, 0, 0, 0, 255, 255, 255, 255], [1, 2, 3]]) {
      const memory = new TestMemory();
      memory.kept = Uint8Array.from(kept);
      const rig = new ConsoleRig({ memory });
      assert.deepEqual(rig.told(), []);
    }
    const memory = new TestMemory();
    memory.kept = Uint8Array.from([1, 0, 0, 0, 255, 255, 255, 255]);
    const rig = new ConsoleRig({ memory });
    assert.equal(rig.told().length, 2, 'bits of ports that are not there mean nothing');
  });

  test('the last of 31 ports is remembered', () => {
    const names = Array.from({ length: limits.consolePortsMax }, () => '');
    const rig = new ConsoleRig({ names });
    assert.equal(rig.backend.description.queueSizes.length, limits.queuesPerDevice);
    rig.ready(30);
    assert.deepEqual([...rig.memory.kept], [1, 0, 0, 0, 0, 0, 0, 0x40]);
  });
});
