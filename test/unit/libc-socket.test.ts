import assert from 'node:assert/strict';
import {
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import { createEventfd, drainEventfd, isEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { Fd, statusFlags } from '../../src/libc/fd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd, inspectMemfd } from '../../src/libc/memfd.ts';
import { Messenger, type Received } from '../../src/libc/messenger.ts';
import { fcntl, socketNative } from '../../src/libc/native.ts';
import {
  connectUnix,
  isUnixSocket,
  peerCredentials,
  socketPair,
  socketPathMaxBytes,
  UnixListener,
} from '../../src/libc/unix-socket.ts';
import { difference, eventually, runEverywhere, sendEmpty, withFolder, withPair } from './libc-harness.ts';

const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const options = { mode: 0o600, backlog: 4 };

function received(result: Received | 'empty' | 'closed'): Received {
  assert(typeof result === 'object', String(result));
  return result;
}

function connected(result: ReturnType<typeof connectUnix>): Fd {
  assert(result instanceof Fd, String(result));
  return result;
}

runEverywhere(import.meta.url, {
  'messages keep their bounds and arrive in order'() {
    return withPair(({ here, there, messenger }) => {
      assert.equal(messenger.receive(there.number), 'empty');
      assert.equal(messenger.send(here.number, text('one')), 'sent');
      assert.equal(messenger.send(here.number, text('second')), 'sent');
      const one = received(messenger.receive(there.number));
      assert.deepEqual(one, { bytes: text('one'), fds: [], truncated: false });
      assert.deepEqual(received(messenger.receive(there.number)).bytes, text('second'));
      assert.deepEqual(one.bytes, text('one'));
      assert.equal(messenger.receive(there.number), 'empty');
    });
  },

  'descriptors arrive as descriptors of the same files, close-on-exec'() {
    return withPair(({ here, there, messenger }) => {
      const memory = createMemfd('passed', 4096);
      const bell = createEventfd();
      assert.equal(messenger.send(here.number, text('x'), [memory.number, bell.number]), 'sent');
      const { fds, truncated } = received(messenger.receive(there.number));
      assert.equal(truncated, false);
      const [gotMemory, gotBell] = fds;
      assert(gotMemory && gotBell && fds.length === 2);
      assert.notEqual(gotMemory.number, memory.number);
      for (const fd of fds) assert.equal(fcntl(fd.number, linux.F_GETFD, 'int', 0), linux.FD_CLOEXEC);
      assert.equal(typeof inspectMemfd(gotMemory.number), 'object');
      assert.equal(isEventfd(gotBell.number), true);
      signalEventfd(gotBell.number);
      assert.equal(drainEventfd(bell.number), true);
      const [mine, theirs] = [memory, gotMemory].map((fd) => Mapping.map(fd.number, 0, 4096, { writable: true }));
      assert(mine && theirs);
      mine.bytes[4095] = 77;
      assert.equal(theirs.bytes[4095], 77);
      for (const each of [memory, bell, ...fds, mine, theirs]) each.close();
    });
  },

  'descriptors beyond the bound are closed and reported'() {
    return withPair(
      ({ here, there, messenger }) => {
        const sender = new Messenger(8, 253);
        const fd = createEventfd();
        const before = census();
        for (const count of [2, 3, 4, 253]) {
          const numbers = new Array<number>(count).fill(fd.number);
          assert.equal(sender.send(here.number, text('x'), numbers), 'sent');
          const { fds, truncated } = received(messenger.receive(there.number));
          assert.equal(fds.length, 2);
          assert.equal(truncated, count > 2);
          assert.equal(difference(before, census(), 'eventfd'), 2);
          for (const each of fds) each.close();
        }
        assert.deepEqual(census(), before);
        fd.close();
        sender.close();
      },
      { maxFds: 2 },
    );
  },

  'a message beyond the bound is cut and reported'() {
    return withPair(
      ({ here, there, messenger }) => {
        const sender = new Messenger(64, 1);
        const fd = createEventfd();
        assert.equal(sender.send(here.number, text('123456789'), [fd.number]), 'sent');
        assert.equal(sender.send(here.number, text('12345678')), 'sent');
        const cut = received(messenger.receive(there.number));
        assert.deepEqual([cut.bytes, cut.truncated, cut.fds.length], [text('12345678'), true, 1]);
        const whole = received(messenger.receive(there.number));
        assert.deepEqual([whole.bytes, whole.truncated], [text('12345678'), false]);
        for (const each of [fd, sender, ...cut.fds]) each.close();
      },
      { maxBytes: 8 },
    );
  },

  'a full socket takes nothing and keeps what it has'() {
    return withPair(({ here, there, messenger }) => {
      const fd = createEventfd();
      let sent = 0;
      let result = messenger.send(here.number, text('x'), [fd.number]);
      for (; result === 'sent'; result = messenger.send(here.number, text('x'), [fd.number])) sent += 1;
      assert.equal(result, 'full');
      assert(sent > 1);
      let taken = 0;
      for (let got = messenger.receive(there.number); got !== 'empty'; got = messenger.receive(there.number)) {
        for (const each of received(got).fds) each.close();
        taken += 1;
      }
      assert.equal(taken, sent);
      assert.equal(messenger.send(here.number, text('x')), 'sent');
      fd.close();
    });
  },

  'a peer that is gone is a value, not an exception or a signal'() {
    return withPair(({ here, there, messenger }) => {
      assert.equal(messenger.send(there.number, text('last')), 'sent');
      there.close();
      assert.equal(messenger.send(here.number, text('x')), 'gone');
      assert.deepEqual(received(messenger.receive(here.number)).bytes, text('last'));
      assert.equal(messenger.receive(here.number), 'closed');
      assert.equal(messenger.receive(here.number), 'closed');
    });
  },

  'a peer that closes on unread messages resets, and then is gone'() {
    return withPair(({ here, there, messenger }) => {
      assert.equal(messenger.send(here.number, text('unread')), 'sent');
      there.close();
      assert.equal(messenger.receive(here.number), 'closed');
      assert.equal(messenger.receive(here.number), 'closed');
    });
  },

  'what a peer said before it closed on unread messages is still read'() {
    return withPair(({ here, there, messenger }) => {
      assert.equal(messenger.send(here.number, text('unread')), 'sent');
      assert.equal(messenger.send(there.number, text('why')), 'sent');
      there.close();
      assert.deepEqual(received(messenger.receive(here.number)).bytes, text('why'));
      assert.equal(messenger.receive(here.number), 'closed');
    });
  },

  'an empty message counts as the end, and its descriptors do not leak'() {
    return withPair(({ here, there, messenger }) => {
      assert.throws(() => messenger.send(here.number, new Uint8Array(0)), /invariant broken/);
      assert.throws(() => messenger.send(here.number, new Uint8Array(65)), /invariant broken/);
      assert.throws(() => messenger.send(here.number, text('x'), [0, 0, 0, 0, 0]), /invariant broken/);
      sendEmpty(here.number);
      assert.equal(messenger.receive(there.number), 'closed');
      assert.throws(() => messenger.send(1_000_000, text('x')), { call: 'sendmsg', errnoName: 'EBADF' });
      assert.throws(() => messenger.receive(1_000_000), { call: 'recvmsg', errnoName: 'EBADF' });
      assert.throws(() => messenger.send(here.number, text('x'), [1_000_000]), { errnoName: 'EBADF' });
    });
  },

  'a stream socket takes a part and gives what it has'() {
    return withPair(
      ({ here, there, messenger }) => {
        const bytes = new Uint8Array(1 << 20).map((_, index) => index % 251);
        const fd = createEventfd();
        const first = messenger.sendSome(here.number, bytes, [fd.number]);
        assert(typeof first === 'number' && first > 0 && first < bytes.length);
        let next: ReturnType<Messenger['sendSome']> = first;
        while (typeof next === 'number') next = messenger.sendSome(here.number, bytes.subarray(0, 1));
        assert.equal(next, 'full');
        const { bytes: start, fds } = received(messenger.receive(there.number));
        assert.deepEqual(start, bytes.subarray(0, start.length));
        assert.equal(fds.length, 1);
        here.close();
        let rest: Received | 'empty' | 'closed' = 'empty';
        do rest = messenger.receive(there.number);
        while (typeof rest === 'object');
        assert.equal(rest, 'closed');
        for (const each of [fd, ...fds]) each.close();
      },
      { type: 'stream', maxBytes: 1 << 20 },
    );
  },

  async 'any kind of file that a peer sends is closed again'() {
    await withPair(async ({ here, there, messenger }) => {
      const before = census();
      const file = openSync('/dev/null', 'r');
      const extra = socketPair('stream');
      assert.equal(
        messenger.send(here.number, text('x'), [file, extra[0].number, extra[1].number, here.number]),
        'sent',
      );
      const { fds } = received(messenger.receive(there.number));
      assert.equal(fds.length, 4);
      for (const each of [...fds, ...extra]) each.close();
      closeSync(file);
      await eventually(() => assert.deepEqual(census(), before));
    });
  },

  async 'a listener accepts, both sides know each other, and its file goes with it'() {
    await withFolder((folder) => {
      const path = `${folder}/socket`;
      assert.equal(connectUnix(path), 'absent');
      const listener = UnixListener.listen(path, { ...options, mode: 0o666 });
      assert.equal(statSync(path).mode & 0o777, 0o666);
      assert.equal(listener.accept(), undefined);
      const client = connected(connectUnix(path));
      const server = listener.accept();
      assert(server);
      for (const fd of [client, server, listener.fd]) {
        assert.equal(fcntl(fd.number, linux.F_GETFD, 'int', 0), linux.FD_CLOEXEC);
        assert.equal(statusFlags(fd.number) & linux.O_NONBLOCK, linux.O_NONBLOCK);
      }
      const self = { pid: process.pid, uid: process.getuid?.(), gid: process.getgid?.() };
      assert.deepEqual(peerCredentials(server.number), self);
      assert.deepEqual(peerCredentials(client.number), self);
      assert.equal(ringDoorbell(client.number), true);
      assert.equal(drainDoorbell(server.number, 1), 'more');
      listener.close();
      listener.close();
      assert.equal(existsSync(path), false);
      assert.equal(ringDoorbell(server.number), true);
      for (const each of [client, server]) each.close();
    });
  },

  async 'a full backlog is busy and clears'() {
    await withFolder((folder) => {
      const listener = UnixListener.listen(`${folder}/socket`, { mode: 0o600, backlog: 1 });
      const clients: Fd[] = [];
      let result = connectUnix(listener.path);
      for (; result instanceof Fd; result = connectUnix(listener.path)) clients.push(result);
      assert.equal(result, 'busy');
      assert.equal(clients.length, 2);
      listener.accept()?.close();
      clients.push(connected(connectUnix(listener.path)));
      for (const each of [...clients, listener]) each.close();
    });
  },

  async 'only a deserted socket file is replaced'() {
    await withFolder(async (folder) => {
      const path = `${folder}/socket`;
      const inUse = { code: 'system-call', call: 'bind', errnoName: 'EADDRINUSE' };
      const first = UnixListener.listen(path, options);
      assert.throws(() => UnixListener.listen(path, options), inUse);
      assert.throws(() => UnixListener.listen(path, { ...options, type: 'stream' }), inUse);
      // The attempt above has knocked; that must not disturb.
      first.accept()?.close();
      // As after a crash: the socket is gone, its file is not.
      first.fd.close();
      assert.equal(existsSync(path), true);
      assert.equal(connectUnix(path), 'refused');
      const second = UnixListener.listen(path, options);
      first.close();
      connected(connectUnix(path)).close();
      unlinkSync(path);
      writeFileSync(path, 'data');
      second.close();
      assert.throws(() => UnixListener.listen(path, options), inUse);
      assert.equal(readFileSync(path, 'utf8'), 'data');
      symlinkSync('nowhere', `${folder}/link`);
      assert.throws(() => UnixListener.listen(`${folder}/link`, options), inUse);
      assert.throws(() => UnixListener.listen(`${folder}/no/socket`, options), { call: 'bind', errnoName: 'ENOENT' });
      assert.throws(() => connectUnix(`${path}/below`), { call: 'connect', errnoName: 'ENOTDIR' });
    });
  },

  async 'paths of 107 bytes work, longer and impossible ones are refused'() {
    await withFolder((folder) => {
      const longest = `${folder}/`.padEnd(socketPathMaxBytes, 's');
      const listener = UnixListener.listen(longest, options);
      connected(connectUnix(longest)).close();
      listener.close();
      for (const path of [`${longest}s`, `${longest.slice(0, -1)}ä`, '', 'a\0b', '\0abstract']) {
        assert.throws(() => UnixListener.listen(path, options), { code: 'invalid-request' });
        assert.throws(() => connectUnix(path), { code: 'invalid-request' });
      }
    });
  },

  'stream sockets are told from seqpacket sockets and from everything else'() {
    const [seqpacket, other] = socketPair();
    const [stream, end] = socketPair('stream');
    const bell = createEventfd();
    const afInet = 2;
    const tcp = new Fd(socketNative(afInet, linux.SOCK_STREAM | linux.SOCK_CLOEXEC, 0));
    assert.equal(isUnixSocket(seqpacket.number, 'seqpacket'), true);
    assert.equal(isUnixSocket(seqpacket.number, 'stream'), false);
    assert.equal(isUnixSocket(stream.number, 'stream'), true);
    assert.equal(isUnixSocket(stream.number, 'seqpacket'), false);
    for (const number of [bell.number, tcp.number, 1_000_000, -1]) {
      assert.equal(isUnixSocket(number, 'stream'), false);
      assert.equal(isUnixSocket(number, 'seqpacket'), false);
    }
    for (const each of [seqpacket, other, stream, end, bell, tcp]) each.close();
    assert.throws(() => peerCredentials(1_000_000), { call: 'getsockopt(SO_PEERCRED)', errnoName: 'EBADF' });
  },
});
