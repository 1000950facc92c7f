import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { systemClock } from '../../src/kit/clock.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { createEventfd, drainEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { Fd, ForeignFd } from '../../src/libc/fd.ts';
import { Messenger } from '../../src/libc/messenger.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { connectUnix, socketPair, UnixListener } from '../../src/libc/unix-socket.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { openMessenger, SocketChannel } from '../../src/vhost-user/socket.ts';
import type { Message } from '../../src/vhost-user/stream.ts';
import { fromHex, toHex } from '../support/golden.ts';
import { messageHex } from '../support/vhost-user-fakes.ts';
import { eventually, withFolder } from './libc-harness.ts';

const poller = new LoopPoller();
const messenger = openMessenger();
after(() => {
  poller.close();
  messenger.close();
});

class End {
  readonly channel: SocketChannel;
  readonly got: Message[] = [];
  readonly ends: string[] = [];

  constructor(fd: Fd) {
    this.channel = new SocketChannel(fd, messenger, poller);
  }

  start(): this {
    this.channel.start({ received: (message) => this.got.push(message), ended: (reason) => this.ends.push(reason) });
    return this;
  }

  send(hex: string, fds: readonly number[] = []) {
    return this.channel.send(fromHex(hex), fds);
  }
}

async function withEnds(run: (a: End, b: End) => Promise<void>): Promise<void> {
  const before = census();
  const [a, b] = socketPair('stream').map((fd) => new End(fd)) as [End, End];
  await run(a, b);
  for (const end of [a, b]) {
    for (const message of end.got) for (const fd of message.fds) fd.close();
    end.channel.close();
  }
  await eventually(() => assert.deepEqual(census(), before));
}

/** Bytes as a peer without our code sends them. */
async function withRaw(run: (end: End, raw: Fd) => Promise<void>): Promise<void> {
  const before = census();
  const [mine, raw] = socketPair('stream');
  const end = new End(mine).start();
  await run(end, raw);
  for (const message of end.got) for (const fd of message.fds) fd.close();
  end.channel.close();
  raw.close();
  await eventually(() => assert.deepEqual(census(), before));
}

test('messages cross with their descriptors, each with its own', () =>
  withEnds(async (a, b) => {
    b.start();
    const bells = [createEventfd(), createEventfd()];
    assert.equal(a.send(messageHex(1, 1)), 'sent');
    assert.equal(a.send(messageHex(2, 1, 'aabb'), [bells[0]!.number]), 'sent');
    assert.equal(a.send(messageHex(3, 1, 'cc')), 'sent');
    assert.equal(a.send(messageHex(4, 1), [bells[1]!.number, bells[0]!.number]), 'sent');
    await eventually(() => assert.equal(b.got.length, 4));
    assert.deepEqual(
      b.got.map((message) => [message.request, toHex(message.payload), message.fds.length]),
      [
        [1, '', 0],
        [2, 'aabb', 1],
        [3, 'cc', 0],
        [4, '', 2],
      ],
    );
    signalEventfd(b.got[3]!.fds[0]!.number);
    assert.equal(drainEventfd(bells[1]!.number), true);
    for (const bell of bells) bell.close();
  }));

test('what the other side does not read is queued with its descriptors, then refused', () =>
  withEnds(async (a, b) => {
    const payload = 'ab'.repeat(4096);
    const bell = createEventfd();
    let sent = 0;
    while (a.send(messageHex(7, 1, payload), sent % 16 === 0 ? [bell.number] : []) === 'sent') sent += 1;
    assert(sent > limits.vhostUserSendQueueMessages);
    assert.equal(a.send(messageHex(7, 1)), 'full');
    bell.close();
    a.start();
    b.start();
    await eventually(() => assert.equal(b.got.length, sent));
    for (const [i, message] of b.got.entries()) {
      assert.equal(message.fds.length, i % 16 === 0 ? 1 : 0);
      assert.equal(toHex(message.payload), payload);
    }
    assert.equal(a.send(messageHex(7, 1)), 'sent');
    await eventually(() => assert.equal(b.got.length, sent + 1));
    assert.deepEqual([...a.ends, ...b.ends], []);
  }));

test('closing drops what is queued, and the other side learns of it', () =>
  withEnds(async (a, b) => {
    const bell = createEventfd();
    while (a.send(messageHex(7, 1, 'ab'.repeat(4096)), [bell.number]) === 'sent');
    bell.close();
    a.channel.close();
    assert.equal(a.send(messageHex(1, 1)), 'gone');
    b.start();
    await eventually(() => assert.equal(b.ends.length, 1));
    assert.match(b.ends[0]!, /^the other side has closed the connection/);
  }));

test('an end in the middle of a message is said', () =>
  withRaw(async (end, raw) => {
    messenger.sendSome(raw.number, fromHex(messageHex(1, 1, 'aabb')).subarray(0, 13));
    raw.close();
    await eventually(() => assert.deepEqual(end.ends, ['the other side has closed the connection within a message']));
  }));

test('a peer that is gone shows when something is sent', () =>
  withRaw(async (end, raw) => {
    raw.close();
    assert.equal(end.send(messageHex(1, 1)), 'gone');
    await eventually(() => assert.deepEqual(end.ends, ['the other side has closed the connection']));
  }));

test('pieces of single bytes make a message', () =>
  withRaw(async (end, raw) => {
    const bell = createEventfd();
    for (const [i, byte] of fromHex(messageHex(12, 1, 'aabbcc')).entries()) {
      messenger.sendSome(raw.number, Uint8Array.of(byte), i === 0 ? [bell.number] : []);
      await turn();
    }
    bell.close();
    await eventually(() => assert.equal(end.got.length, 1));
    assert.equal(toHex(end.got[0]!.payload), 'aabbcc');
    assert.equal(end.got[0]!.fds.length, 1);
  }));

const garbage: ReadonlyArray<readonly [string, string, RegExp]> = [
  ['another version', messageHex(1, 3), /^the other side sent a message of version 3$/],
  [
    'an endless payload',
    '0100000001000000ffffffff',
    /^the other side sent a message with 4294967295 bytes of payload$/,
  ],
];
for (const [name, hex, reason] of garbage) {
  test(`${name} ends the channel once`, () =>
    withRaw(async (end, raw) => {
      messenger.sendSome(raw.number, fromHex(messageHex(9, 1) + hex + messageHex(9, 1)));
      await eventually(() => assert.equal(end.ends.length, 1));
      assert.match(end.ends[0]!, reason);
      assert.equal(end.got.length, 1);
    }));
}

test('more descriptors than a message may have end the channel', () =>
  withRaw(async (end, raw) => {
    const bells = Array.from({ length: 9 }, () => createEventfd());
    const wide = new Messenger(64, 9);
    wide.sendSome(
      raw.number,
      fromHex(messageHex(1, 1)),
      bells.map((bell) => bell.number),
    );
    for (const each of [...bells, wide]) each.close();
    await eventually(() => assert.equal(end.ends.length, 1));
    assert.match(end.ends[0]!, /more descriptors/);
    assert.equal(end.got.length, 0);
  }));

test('a descriptor that is none ends a connection of requests with the failed call', () =>
  withEnds(async (a) => {
    const ends: string[] = [];
    const ignore = (): void => {};
    const closed = (error: Error): void => void ends.push(error.message);
    const events = { configChanged: ignore, queueCalled: ignore, queueFailed: ignore, closed };
    const frontEnd = new FrontEnd(a.channel, systemClock, events);
    await assert.rejects(frontEnd.setKick(0, 1_000_000), { code: 'system-call' });
    assert.match(ends.join(), /^sendmsg: EBADF/);
    await assert.rejects(frontEnd.getFeatures(), { code: 'system-call' });
  }));

test('a receiver that closes the channel gets no more of it', () =>
  withEnds(async (a, b) => {
    const got: number[] = [];
    b.channel.start({
      received: (message) => {
        got.push(message.request);
        b.channel.close();
      },
      ended: () => assert.fail('nothing after close'),
    });
    for (let i = 0; i < 4; i++) a.send(messageHex(i, 1));
    await eventually(() => assert.deepEqual(got, [0]));
    await turn();
    assert.deepEqual(got, [0]);
  }));

test('a listening socket and its client speak', () =>
  withFolder(async (folder) => {
    const path = `${folder}/vhost.sock`;
    const listener = UnixListener.listen(path, { mode: 0o600, backlog: 1, type: 'stream' });
    const client = connectUnix(path, 'stream');
    assert(client instanceof Fd);
    const accepted = listener.accept();
    assert(accepted instanceof ForeignFd);
    const a = new End(client);
    const b = new End(accepted).start();
    a.send(messageHex(3, 1));
    await eventually(() => assert.equal(b.got[0]?.request, 3));
    for (const each of [a.channel, b.channel, listener]) each.close();
  }));
