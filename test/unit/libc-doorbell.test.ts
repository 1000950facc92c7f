import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { release } from 'node:os';
import { test } from 'node:test';
import { isMainThread } from 'node:worker_threads';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { setStatusFlags, statusFlags } from '../../src/libc/fd.ts';
import { refuseDescriptors, socketPair } from '../../src/libc/unix-socket.ts';
import { eventually, runApart, runEverywhere, sendEmpty, withPair } from './libc-harness.ts';

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

runEverywhere(import.meta.url, {
  'a doorbell rings, and rings on when it is full, until the peer is gone'() {
    return withPair(({ here, there }) => {
      assert.equal(drainDoorbell(there.number, 8), 'empty');
      assert.equal(ringDoorbell(here.number), true);
      assert.equal(ringDoorbell(here.number), true);
      assert.equal(drainDoorbell(there.number, 2), 'more');
      assert.equal(drainDoorbell(there.number, 2), 'empty');
      for (const fd of [here, there]) setStatusFlags(fd.number, statusFlags(fd.number) & ~linux.O_NONBLOCK);
      for (let ring = 0; ring < 5000; ring += 1) assert.equal(ringDoorbell(here.number), true);
      assert.equal(drainDoorbell(there.number, 8), 'more');
      assert.equal(drainDoorbell(there.number, 5000), 'empty');
      there.close();
      assert.equal(ringDoorbell(here.number), false);
      assert.equal(drainDoorbell(here.number, 8), 'closed');
      assert.throws(() => ringDoorbell(1_000_000), { call: 'send', errnoName: 'EBADF' });
      assert.throws(() => drainDoorbell(1_000_000, 1), { call: 'recvmsg', errnoName: 'EBADF' });
    });
  },

  'a doorbell reports an end after the rings, a reset and an empty message'() {
    for (const last of ['end', 'reset', 'empty'] as const) {
      const [here, there] = socketPair();
      ringDoorbell(there.number);
      if (last === 'reset') ringDoorbell(here.number);
      if (last === 'empty') sendEmpty(there.number);
      else there.close();
      assert.equal(drainDoorbell(here.number, 8), 'closed');
      for (const each of [here, there]) each.close();
    }
  },

  'descriptors attached to a ring are closed'() {
    return withPair(async ({ here, there, messenger }) => {
      const before = census();
      const fd = createEventfd();
      const file = openSync('/dev/null', 'r');
      for (let ring = 0; ring < 10; ring += 1) {
        assert.equal(messenger.send(here.number, text('xyz'), [fd.number, file]), 'sent');
      }
      assert.equal(drainDoorbell(there.number, 20), 'empty');
      closeSync(file);
      fd.close();
      await eventually(() => assert.deepEqual(census(), before));
    });
  },

  'a socket that refuses descriptors takes rings and no descriptors'() {
    return withPair(({ here, there, messenger }) => {
      if (refuseDescriptors(there.number)) {
        assert.throws(() => messenger.send(here.number, text('x'), [here.number]), { errnoName: 'EPERM' });
      } else {
        assert(kernelOlderThan(6, 16));
      }
      assert.equal(ringDoorbell(here.number), true);
      assert.equal(drainDoorbell(there.number, 8), 'empty');
      assert.equal(refuseDescriptors(1_000_000), false);
    });
  },
});

function kernelOlderThan(major: number, minor: number): boolean {
  const [has = 0, hasMinor = 0] = release().split('.').map(Number);
  return has < major || (has === major && hasMinor < minor);
}

if (isMainThread) {
  for (const [how, take] of [
    ['a ring', 'drainDoorbell(there.number, 8)'],
    ['a message', 'messenger.receive(there.number).fds[0].close()'],
    ['a message that takes none', 'none.receive(there.number)'],
  ]) {
    test(`a socket that lingers for minutes on close, sent with ${how}, makes nobody wait`, () => {
      const { output } = runApart(`
        import { writeSync } from 'node:fs';
        import { createServer } from 'node:net';
        import { drainDoorbell } from 'libc/doorbell';
        import { Fd, setStatusFlags } from 'libc/fd';
        import { Messenger } from 'libc/messenger';
        import { connectNative, setsockopt, socketNative } from 'libc/native';
        import { socketPair } from 'libc/unix-socket';
        const messenger = new Messenger(8, 1);
        const none = new Messenger(8, 0);
        const [here, there] = socketPair();
        const server = createServer({ pauseOnConnect: true }).listen(0, '127.0.0.1', () => {
          const { port } = server.address();
          const tcp = new Fd(socketNative(2, 1, 0));
          const address = new Uint8Array([2, 0, port >> 8, port & 255, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
          connectNative(tcp.number, address, 16);
          setStatusFlags(tcp.number, ${linux.O_NONBLOCK});
          try { for (;;) writeSync(tcp.number, Buffer.alloc(1 << 20)); } catch (error) { console.log(error.code); }
          setsockopt(tcp.number, 1, 13, new Int32Array([1, 600]), 8);
          messenger.send(here.number, new Uint8Array(1), [tcp.number]);
          tcp.close();
          ${take};
          console.log('went on');
          process.kill(process.pid, 'SIGKILL');
        });
      `);
      assert.equal(output, 'EAGAIN\nwent on\n');
    });
  }
}
