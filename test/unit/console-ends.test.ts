import assert from 'node:assert/strict';
import {
  closeSync,
  constants,
  existsSync,
  mkdtempSync,
  openSync,
  readlinkSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type { HostEnd, HostEndEvents } from '../../src/bridge/backend/console/host-end.ts';
import { SocketEnd } from '../../src/bridge/backend/console/socket-end.ts';
import { TerminalEnd } from '../../src/bridge/backend/console/terminal-end.ts';
import { openConsole } from '../../src/bridge/backend/console.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { farSide, readStream, writeStream } from '../../src/libc/byte-stream.ts';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { Fd } from '../../src/libc/fd.ts';
import { ioctlPointer } from '../../src/libc/native.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { windowSize } from '../../src/libc/pty.ts';
import { connectUnix } from '../../src/libc/unix-socket.ts';
import { until } from '../support/guest-fixture.ts';
import { settledCensus } from '../support/settled-census.ts';

const size = { columns: 80, rows: 24 };
const unusable = (error: unknown): boolean => error instanceof VmsgError && error.code === 'backend-unusable';

/** A port that reads on and keeps what it reads. */
class Listener implements HostEndEvents {
  readonly log: string[] = [];
  heard = '';
  end: HostEnd | undefined;

  connected(): void {
    this.log.push('connected');
    this.end?.wantRead(true);
  }

  disconnected(): void {
    this.log.push('disconnected');
  }

  readable(): void {
    const into = new Uint8Array(64);
    const count = this.end?.read(into) ?? 0;
    this.heard += Buffer.from(into.subarray(0, count)).toString();
  }

  writable(): void {
    this.log.push('writable');
    this.end?.wantWrite(false);
  }

  resized({ columns, rows }: { columns: number; rows: number }): void {
    this.log.push(`${columns}x${rows}`);
  }
}

interface Place {
  readonly path: string;
  readonly poller: LoopPoller;
  open(kind: 'socket' | 'terminal'): { end: HostEnd; events: Listener };
}

async function within(run: (place: Place) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'vmsg-console-'));
  const path = join(directory, 'port');
  const before = await settledCensus();
  const poller = new LoopPoller();
  const ends: HostEnd[] = [];
  const open: Place['open'] = (kind) => {
    const end =
      kind === 'socket' ? SocketEnd.open(path, poller, systemClock) : TerminalEnd.open(path, size, poller, systemClock);
    ends.push(end);
    const events = new Listener();
    events.end = end;
    end.start(events);
    return { end, events };
  };
  try {
    await run({ path, poller, open });
  } finally {
    for (const end of ends) end.close();
    poller.close();
  }
  assert.equal(existsSync(path), false, 'the path is free again');
  await until(() => JSON.stringify(census()) === before, 'nothing is left');
  rmSync(directory, { recursive: true });
}

const bytes = (text: string): Uint8Array => Buffer.from(text);

function client(path: string): Fd {
  const fd = connectUnix(path, 'stream');
  assert.ok(fd instanceof Fd);
  return fd;
}

function hear(fd: number): string | 'empty' | 'ended' {
  const into = new Uint8Array(1000);
  const count = readStream(fd, into);
  return typeof count === 'number' ? Buffer.from(into.subarray(0, count)).toString() : count;
}

describe('console port on a socket', () => {
  test('is for this user only, and carries bytes both ways until the client leaves', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('socket');
      assert.equal(statSync(path).mode & 0o777, 0o600);
      assert.deepEqual([end.connected, end.write(bytes('x'))], [false, 0]);
      const fd = client(path);
      writeStream(fd.number, bytes('hello'));
      await until(() => events.heard === 'hello', 'the bytes arrive');
      assert.equal(end.write(bytes('welcome')), 7);
      assert.equal(hear(fd.number), 'welcome');
      writeStream(fd.number, bytes(' bye'));
      fd.close();
      await until(() => events.log.length === 2, 'the end is told');
      assert.deepEqual([events.log, events.heard, end.connected], [['connected', 'disconnected'], 'hello bye', false]);
      const again = client(path);
      await until(() => end.connected, 'another one may come');
      again.close();
    }));

  test('one client at a time: another one meets the end at once', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('socket');
      const first = client(path);
      await until(() => end.connected, 'the first is there');
      const second = client(path);
      await until(() => farSide(second.number).gone, 'the second is sent away');
      assert.equal(hear(second.number), 'ended');
      assert.equal(end.write(bytes('1')), 1);
      assert.deepEqual([hear(first.number), events.log], ['1', ['connected']]);
      first.close();
      second.close();
    }));

  test('a client that left while nobody read makes room for the next one', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('socket');
      const first = client(path);
      await until(() => end.connected, 'the first is there');
      end.wantRead(false);
      writeStream(first.number, bytes('unread'));
      first.close();
      assert.equal(end.write(bytes('to nobody')), 9, 'what a client that left will not read is lost');
      const second = client(path);
      await until(() => events.log.length === 3, 'the second is taken');
      assert.deepEqual(events.log, ['connected', 'disconnected', 'connected']);
      assert.equal(end.write(bytes('2')), 1);
      assert.equal(hear(second.number), '2');
      second.close();
    }));

  test('a client that replies to nothing is not read, and one that does not read is not written to', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('socket');
      const fd = client(path);
      await until(() => end.connected, 'it is there');
      const block = new Uint8Array(65536);
      let taken = 0;
      for (let count = end.write(block); count > 0; count = end.write(block)) taken += count;
      assert.ok(taken > 0 && taken < 4 * 1024 * 1024, `the kernel takes ${taken} bytes`);
      end.wantWrite(true);
      for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
      assert.deepEqual(events.log, ['connected'], 'no room yet');
      const into = new Uint8Array(taken);
      for (let got = 0; got < taken; ) got += readStream(fd.number, into) as number;
      await until(() => events.log.includes('writable'), 'room is told');
      fd.close();
    }));

  test('hang-up: the client gets what was written, then the end', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('socket');
      const fd = client(path);
      await until(() => end.connected, 'it is there');
      end.write(bytes('last'));
      end.hangUp();
      assert.deepEqual([hear(fd.number), end.connected], ['last', false]);
      await until(() => hear(fd.number) === 'ended', 'the end follows');
      assert.deepEqual(events.log, ['connected', 'disconnected']);
      fd.close();
    }));

  test('a path that is taken is refused; one that nobody listens on is replaced', () =>
    within(async ({ path, open, poller }) => {
      writeFileSync(path, 'precious');
      assert.throws(() => SocketEnd.open(path, poller, systemClock), unusable);
      rmSync(path);
      open('socket');
      assert.throws(() => SocketEnd.open(path, poller, systemClock), unusable);
      assert.throws(() => SocketEnd.open(join(path, 'x'.repeat(200)), poller, systemClock), unusable);
    }));
});

const openTerminal = (path: string): number =>
  openSync(path, constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);

describe('console port on a pseudo terminal', () => {
  test('the link leads to a raw terminal of this user, and bytes pass as they are', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('terminal');
      const terminal = readlinkSync(path);
      assert.match(terminal, /^\/dev\/pts\/\d+$/);
      assert.equal(statSync(terminal).mode & 0o777, 0o600);
      const fd = openTerminal(path);
      await until(() => end.connected, 'the program is noticed');
      const all = Uint8Array.from({ length: 256 }, (_, i) => i);
      assert.equal(end.write(all), 256);
      const back = new Uint8Array(300);
      assert.equal(readSync(fd, back), 256);
      assert.deepEqual(back.subarray(0, 256), all);
      writeSync(fd, 'no echo\r\n\x03\x04');
      await until(() => events.heard.length === 11, 'the bytes arrive');
      assert.equal(events.heard, 'no echo\r\n\x03\x04');
      writeSync(fd, 'bye');
      closeSync(fd);
      await until(() => !end.connected, 'the end is told');
      assert.deepEqual([events.heard.slice(11), events.log], ['bye', ['connected', 'disconnected']]);
      const again = openTerminal(path);
      await until(() => end.connected, 'another program is noticed');
      closeSync(again);
    }));

  test('the window size is followed while a program is there', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('terminal');
      const fd = openTerminal(path);
      assert.deepEqual(windowSize(fd), size);
      await until(() => end.connected, 'the program is noticed');
      ioctlPointer(fd, linux.TIOCSWINSZ, 'void *', new Uint16Array([50, 132, 0, 0]));
      await until(() => events.log.length === 2, 'the size is noticed');
      assert.deepEqual(events.log, ['connected', '132x50']);
      closeSync(fd);
    }));

  test('hang-up: the program gets the end, and the link another terminal', () =>
    within(async ({ path, open }) => {
      const { end, events } = open('terminal');
      const fd = openTerminal(path);
      await until(() => end.connected, 'the program is noticed');
      const before = statSync(path).ino;
      end.hangUp();
      assert.deepEqual([end.connected, events.log], [false, ['connected', 'disconnected']]);
      assert.equal(readSync(fd, new Uint8Array(1)), 0);
      assert.notEqual(statSync(path).ino, before);
      const again = openTerminal(path);
      await until(() => end.connected, 'the new one works');
      closeSync(again);
      closeSync(fd);
    }));

  test('a stale link is replaced; anything else in its place is refused and kept', () =>
    within(async ({ path, open, poller }) => {
      writeFileSync(path, 'precious');
      assert.throws(() => TerminalEnd.open(path, size, poller, systemClock), unusable);
      rmSync(path);
      symlinkSync('/etc/hostname', path);
      assert.throws(() => TerminalEnd.open(path, size, poller, systemClock), unusable);
      assert.equal(readlinkSync(path), '/etc/hostname');
      rmSync(path);
      symlinkSync('/dev/pts/99999', path);
      open('terminal');
      assert.notEqual(readlinkSync(path), '/dev/pts/99999');
      assert.throws(() => TerminalEnd.open(join(path, 'deeper'), size, poller, systemClock), unusable);
    }));

  test('a link that somebody else replaced stays', () =>
    within(async ({ path, open }) => {
      const { end } = open('terminal');
      rmSync(path);
      symlinkSync('/dev/null', path);
      end.close();
      assert.equal(readlinkSync(path), '/dev/null');
      rmSync(path);
    }));
});

test('a console of which one port cannot be opened leaves nothing behind', () =>
  within(async ({ path, poller }) => {
    const host = { configChanged: () => {}, failed: () => {} };
    const ports = [
      { name: '', socket: path },
      { name: '', socket: path },
    ];
    await assert.rejects(openConsole({ ports }, poller, systemClock, host), unusable);
  }));
