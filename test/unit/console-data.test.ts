import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { ConsoleRig, FakeEnd } from '../support/console-end.ts';

const text = (bytes: Uint8Array, length: number): string => Buffer.from(bytes.subarray(0, length)).toString();

describe('console data: host to guest', () => {
  test('bytes go into one buffer after the other, as they come', async () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    const [first, second] = [rig.offer(4, 3, 0, 2), rig.offer(4, 4)];
    end.send('hi');
    assert.deepEqual([await first.done, text(first.written(), 2)], [2, 'hi']);
    assert.equal(second.completions, 0);
    const third = rig.offer(4, 3, 0, 2);
    end.send('123456789');
    assert.deepEqual([await second.done, text(second.written(), 4)], [4, '1234']);
    assert.deepEqual([await third.done, text(third.written(), 5)], [5, '56789']);
  });

  test('without a buffer nothing is read, however much the host sends', () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    end.send('x'.repeat(10_000));
    assert.deepEqual([end.reads, end.reading], [0, false]);
    rig.offer(4, 100);
    assert.equal(end.reading, true);
    end.poll();
    assert.equal(end.toGuest.length, 9_900);
    assert.equal(end.reading, false);
  });

  test('before the guest opens the port nothing is read', async () => {
    const rig = new ConsoleRig();
    rig.tell(0, 0, 1);
    rig.tell(1, 3, 1);
    const end = rig.ends[1]!;
    const buffer = rig.offer(4, 10);
    end.connect();
    end.send('early');
    assert.equal(end.reads, 0);
    rig.tell(1, 6, 1);
    end.poll();
    assert.equal(await buffer.done, 5);
  });

  test('one turn takes a bounded number of bytes', async () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    const buffer = rig.offer(4, 2 * limits.consoleTurnMaxBytes);
    const rest = rig.offer(4, 10);
    for (let i = 0; i < limits.consoleTurnMaxBytes + 5; i++) end.toGuest.push(1);
    end.events?.readable();
    assert.equal(await buffer.done, limits.consoleTurnMaxBytes);
    assert.equal(rest.completions, 0, 'others get their turn');
    assert.equal(end.reading, true);
    end.poll();
    assert.equal(await rest.done, 5);
  });

  test('the end of a program is told after what it sent', async () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    assert.deepEqual(rig.told(), [[1, 6, 1, '']]);
    const order: string[] = [];
    const buffer = rig.offer(4, 4, 4);
    void buffer.done.then(() => order.push('data'));
    const message = rig.offer(2, 100);
    void message.done.then(() => order.push('end'));
    end.leaving = true;
    end.send('last');
    await message.done;
    assert.deepEqual(order, ['data', 'end']);
    assert.equal(await buffer.done, 4);
  });

  test('a port without MULTIPORT is open from the start', async () => {
    const rig = new ConsoleRig({ multiport: false });
    rig.ends[0]!.connect();
    const buffer = rig.offer(0, 16);
    rig.ends[0]!.send('login: ');
    assert.equal(await buffer.done, 7);
    rig.give(1, 'root');
    assert.equal(rig.ends[0]!.heard, 'root');
  });
});

describe('console data: guest to host', () => {
  test('a host that does not read keeps the buffers, in order, and gets every byte once', async () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    end.room = 4;
    const requests = ['ab', 'cdef', 'gh', 'ij'].map((part) => rig.give(5, part.slice(0, 1), '', part.slice(1)));
    assert.deepEqual([end.heard, requests.map((r) => r.completions)], ['abcd', [1, 0, 0, 0]]);
    assert.equal(end.writing, true);
    end.room = 1;
    end.poll();
    assert.deepEqual([end.heard, requests[1]?.completions], ['abcde', 0]);
    end.room = 100;
    end.poll();
    assert.equal(end.heard, 'abcdefghij');
    assert.deepEqual(await Promise.all(requests.map((r) => r.done)), [0, 0, 0, 0]);
    assert.equal(end.writing, false);
  });

  test('nobody there: it is discarded at once', () => {
    const rig = new ConsoleRig();
    rig.ready(0, 1);
    assert.equal(rig.give(1, 'boot messages').completions, 1);
    assert.equal(rig.ends[0]!.heard, '');
  });

  test('a host that leaves lets go of what waits', () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    end.room = 1;
    const waiting = [rig.give(5, 'ab'), rig.give(5, 'cd')];
    end.leave();
    assert.deepEqual(
      waiting.map((r) => r.completions),
      [1, 1],
    );
    end.room = 10;
    end.connect();
    rig.give(5, 'new');
    assert.equal(end.heard, 'anew', 'a new program gets nothing of the old');
  });

  test('the guest closes: the program is sent away after what was written before', () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    end.room = 2;
    const request = rig.give(5, 'tail');
    rig.tell(1, 6, 0);
    assert.equal(end.hangUps, 0);
    end.room = 2;
    end.poll();
    assert.deepEqual([end.heard, end.hangUps, request.completions], ['tail', 1, 1]);
    end.connect();
    rig.tell(1, 6, 0);
    assert.equal(end.hangUps, 1, 'closing what is closed does nothing');
    rig.tell(1, 6, 1);
    assert.equal(end.hangUps, 1);
  });

  test('a guest that opens again before the rest is written keeps the program', () => {
    const rig = new ConsoleRig();
    rig.ready(1);
    const end = rig.ends[1]!;
    end.connect();
    end.room = 0;
    rig.give(5, 'tail');
    rig.tell(1, 6, 0);
    rig.tell(1, 6, 1);
    end.room = 10;
    end.poll();
    assert.deepEqual([end.heard, end.hangUps], ['tail', 0]);
  });
});

describe('console data: buffers that make no sense', () => {
  test('are given back at once', () => {
    const rig = new ConsoleRig();
    rig.ready(0, 1);
    for (const end of rig.ends) end.connect();
    for (const queue of [0, 4]) {
      assert.equal(rig.offer(queue).completions, 1);
      assert.equal(rig.offer(queue, 0, 0).completions, 1);
    }
    for (const queue of [1, 3, 5]) {
      assert.equal(rig.give(queue).completions, 1);
      assert.equal(rig.give(queue, '', '').completions, 1);
    }
    for (const length of [0, 1, 8, 11]) assert.equal(rig.offer(2, length).completions, 1);
    assert.deepEqual(
      rig.ends.map((end) => end.heard),
      ['', ''],
    );
  });

  test('more than the device takes are not kept', () => {
    const rig = new ConsoleRig();
    const offered = Array.from({ length: limits.consoleInFlightRequests + 1 }, () => rig.offer(0, 8));
    assert.deepEqual([offered.at(-1)?.completions, offered.at(-2)?.completions], [1, 0]);
  });
});

describe('console data: cancel and end', () => {
  test('cancel releases what waits on one queue, without an answer, and reading stops', () => {
    const rig = new ConsoleRig();
    rig.ready(0, 1);
    const end = rig.ends[1]!;
    end.connect();
    rig.told();
    end.room = 1;
    const [receive, other, transmit, message] = [rig.offer(4, 8), rig.offer(0, 8), rig.give(5, 'ab'), rig.offer(2, 64)];
    rig.backend.cancel(4);
    assert.deepEqual([receive.released, other.released, transmit.released, end.reading], [true, false, false, false]);
    rig.backend.cancel(5);
    rig.backend.cancel(2);
    rig.backend.cancel(3);
    assert.deepEqual([transmit.released, message.released, end.writing], [true, true, false]);
    end.room = 10;
    rig.give(5, 'cd');
    assert.equal(end.heard, 'acd', 'what was released is not written any more');
  });

  test('a reset keeps the program of the console and sends those of other open ports away', () => {
    const rig = new ConsoleRig({ names: ['con', 'a', 'b'] });
    rig.ready(0, 1);
    for (const end of rig.ends) end.connect();
    const buffer = rig.offer(0, 8);
    for (let queue = 0; queue < 8; queue++) rig.backend.cancel(queue);
    rig.backend.deactivate();
    assert.deepEqual(
      rig.ends.map((end) => end.hangUps),
      [0, 1, 0],
    );
    assert.ok(buffer.released);
    rig.ends[0]!.send('typed meanwhile');
    assert.equal(rig.ends[0]!.reads, 0);
    rig.activate();
    rig.ready(0);
    rig.offer(0, 64);
    rig.ends[0]!.poll();
    assert.equal(rig.ends[0]!.toGuest.length, 0);
  });

  test('close releases everything and closes every end', async () => {
    const rig = new ConsoleRig();
    rig.ready(0, 1);
    for (const end of rig.ends) {
      end.connect();
      end.room = 0;
    }
    const requests = [rig.offer(0, 8), rig.offer(4, 8), rig.give(1, 'x'), rig.give(5, 'x')];
    await rig.backend.close();
    assert.ok(requests.every((request) => request.released));
    assert.ok(rig.ends.every((end) => end.closed));
  });

  test('an end that is used after close would be noticed', () => {
    const end = new FakeEnd();
    end.close();
    assert.throws(() => end.read(new Uint8Array(1)));
  });
});
