import assert from 'node:assert/strict';
import { closeSync, constants, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { detach } from '../../src/libc/detach.ts';
import { SystemCallError } from '../../src/libc/errno.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { Fd } from '../../src/libc/fd.ts';
import { tryLock, unlock } from '../../src/libc/flock.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd, inspectMemfd } from '../../src/libc/memfd.ts';
import { errnoNumbers, fcntl, memfdCreate, sysconf } from '../../src/libc/native.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { difference, runApart, runEverywhere, withFolder } from './libc-harness.ts';

const pageBytes = sysconf(linux._SC_PAGESIZE);
const writable = { writable: true };

function memfdWith(seals: number, flags = 0): Fd {
  const fd = new Fd(memfdCreate('hostile', linux.MFD_CLOEXEC | linux.MFD_ALLOW_SEALING | flags));
  if ((flags & linux.MFD_HUGETLB) === 0) ftruncateSync(fd.number, pageBytes);
  if (seals !== 0) sealed(fd, seals);
  return fd;
}

function sealed(fd: Fd, seals: number): void {
  assert.equal(fcntl(fd.number, linux.F_ADD_SEALS, 'int', seals), 0);
}

function refused(fd: number, reason: string): void {
  assert.equal(inspectMemfd(fd), reason);
}

function mapsLine(address: number): string | undefined {
  const start = address.toString(16);
  return readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .find((line) => line.replace(/^0+/, '').startsWith(`${start}-`));
}

runEverywhere(import.meta.url, {
  'a sealed memfd keeps its size and passes inspection'() {
    const fd = createMemfd('test', 3 * pageBytes);
    const info = inspectMemfd(fd.number);
    assert(typeof info === 'object');
    assert.equal(info.sizeBytes, 3 * pageBytes);
    const expected = linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_SEAL;
    assert.equal(info.seals & expected, expected);
    assert.equal(info.seals & linux.F_SEAL_WRITE, 0);
    for (const size of [pageBytes, 4 * pageBytes]) {
      assert.throws(() => ftruncateSync(fd.number, size), { code: 'EPERM' });
    }
    assert.equal(fcntl(fd.number, linux.F_ADD_SEALS, 'int', linux.F_SEAL_WRITE), -1);
    assert.equal(fcntl(fd.number, linux.F_GETFD, 'int', 0), linux.FD_CLOEXEC);
    fd.close();
  },

  'an impossible memfd is a system call error that names errno and leaks nothing'() {
    assert.throws(
      () => createMemfd('x'.repeat(250), pageBytes),
      (error: unknown) =>
        error instanceof SystemCallError &&
        error instanceof VmsgError &&
        error.code === 'system-call' &&
        error.call === 'memfd_create' &&
        error.errno === errnoNumbers.EINVAL &&
        error.errnoName === 'EINVAL' &&
        error.message === `memfd_create ${pageBytes} bytes: EINVAL (Invalid argument)`,
    );
    assert.throws(() => createMemfd('test', pageBytes, 0x4000_0000), {
      code: 'system-call',
      call: 'fcntl(F_ADD_SEALS)',
      errnoName: 'EINVAL',
    });
    assert.throws(() => createMemfd('test', -1), /invariant broken/);
  },

  'memfds that could pull their pages away, or cannot be written, are refused'() {
    const notShrink = 'not sealed against shrinking';
    for (const [seals, reason] of [
      [0, notShrink],
      [linux.F_SEAL_GROW, notShrink],
      [linux.F_SEAL_SHRINK | linux.F_SEAL_WRITE, 'sealed against writing'],
      [linux.F_SEAL_SHRINK | linux.F_SEAL_FUTURE_WRITE, 'sealed against writing'],
    ] as const) {
      const fd = memfdWith(seals);
      refused(fd.number, reason);
      fd.close();
    }
    const minimal = memfdWith(linux.F_SEAL_SHRINK);
    assert.deepEqual(inspectMemfd(minimal.number), { sizeBytes: pageBytes, seals: linux.F_SEAL_SHRINK });
    const readOnly = openSync(`/proc/self/fd/${minimal.number}`, 'r');
    refused(readOnly, 'not open for reading and writing');
    closeSync(readOnly);
    minimal.close();
  },

  'a memfd of huge pages is refused'() {
    const fd = memfdWith(linux.F_SEAL_SHRINK, linux.MFD_HUGETLB);
    refused(fd.number, 'not made of ordinary pages');
    fd.close();
  },

  'what is no memfd is refused'() {
    const eventfd = createEventfd();
    const sockets = socketPair();
    const null_ = openSync('/dev/null', 'r+');
    const folder = openSync('/tmp', 'r');
    const path = openSync('/tmp', 0o10000000 | constants.O_DIRECTORY); // O_PATH
    const numbers = [eventfd.number, sockets[0].number, null_, folder, path, 1_000_000, -1];
    for (const number of numbers) refused(number, 'not a memory file');
    for (const each of [eventfd, ...sockets]) each.close();
    for (const number of [null_, folder, path]) closeSync(number);
  },

  async 'a regular file is refused'() {
    await withFolder((folder) => {
      const file = openSync(`${folder}/file`, 'w+');
      assert.equal(typeof inspectMemfd(file), 'string');
      closeSync(file);
    });
  },

  'a deleted file of a tmpfs is refused although it has seals'() {
    const folder = mkdtempSync('/dev/shm/memfd:');
    const file = openSync(`${folder}/memfd:x`, 'w+');
    rmSync(folder, { recursive: true });
    refused(file, 'not a memfd');
    closeSync(file);
  },

  'two mappings of one memfd show the same bytes, at any offset'() {
    const fd = createMemfd('test', 4 * pageBytes);
    const whole = Mapping.map(fd.number, 0, 4 * pageBytes, writable);
    const part = Mapping.map(fd.number, pageBytes + 10, 2 * pageBytes, writable);
    const last = Mapping.map(fd.number, 4 * pageBytes - 1, 1, writable);
    fd.close();
    assert.equal(part.length, 2 * pageBytes);
    assert.equal(part.bytes.length, 2 * pageBytes);
    assert.equal(part.address % pageBytes, 10);
    part.bytes[0] = 0xa5;
    part.bytes[2 * pageBytes - 1] = 0x5a;
    assert.equal(whole.bytes[pageBytes + 10], 0xa5);
    assert.equal(whole.bytes[3 * pageBytes + 9], 0x5a);
    whole.bytes[4 * pageBytes - 1] = 7;
    assert.deepEqual([...last.bytes], [7]);
    for (const each of [whole, part, last]) each.close();
  },

  'Atomics work on views of a mapping and are seen through another one'() {
    const fd = createMemfd('test', pageBytes);
    const one = Mapping.map(fd.number, 0, pageBytes, writable);
    const two = Mapping.map(fd.number, 0, pageBytes, writable);
    for (const Type of [Uint16Array, Uint32Array, Int32Array]) {
      const here = new Type(one.bytes.buffer, 64, 4);
      const there = new Type(two.bytes.buffer, 64, 4);
      here.fill(0);
      Atomics.store(here, 1, 0x1234);
      assert.equal(Atomics.load(there, 1), 0x1234);
      assert.equal(Atomics.exchange(there, 1, 1), 0x1234);
      assert.equal(Atomics.compareExchange(here, 1, 1, 9), 1);
      assert.equal(Atomics.add(there, 1, 1), 9);
      assert.equal(here[1], 10);
    }
    one.close();
    two.close();
    fd.close();
  },

  'ranges that cannot be mapped are refused before anything happens'() {
    const fd = createMemfd('test', pageBytes);
    for (const [offset, length] of [
      [0, pageBytes + 1],
      [pageBytes, 1],
      [1, pageBytes],
      [0, 0],
      [0, limits.viewMaxBytes + 1],
    ] as const) {
      assert.throws(() => Mapping.map(fd.number, offset, length, writable), { code: 'memory-refused' });
    }
    assert.throws(() => Mapping.map(fd.number, 0.5, 1, writable), /invariant broken/);
    assert.throws(() => Mapping.map(fd.number, -1, 1, writable), /invariant broken/);
    fd.close();
    const eventfd = createEventfd();
    assert.throws(() => Mapping.map(eventfd.number, 0, 1, writable), { call: 'mmap', errnoName: 'ENODEV' });
    eventfd.close();
    assert.throws(() => Mapping.map(1_000_000, 0, 1, writable), { call: 'fstat', errnoName: 'EBADF' });
  },

  'after close every view has length 0 and the memory is unmapped'() {
    const fd = createMemfd('test', pageBytes);
    const before = census().mappings;
    const mapping = Mapping.map(fd.number, 0, pageBytes, writable);
    const words = new Uint32Array(mapping.bytes.buffer, 8, 16);
    words[0] = 1;
    assert.equal(census().mappings, before + 1);
    assert.match(mapsLine(mapping.address) ?? '', /memfd:test/);
    mapping.close();
    mapping.close();
    assert.equal(mapping.closed, true);
    assert.equal(census().mappings, before);
    assert.equal(mapping.bytes.length, 0);
    assert.equal(words.length, 0);
    assert.equal(words[0], undefined);
    words[0] = 2;
    assert.equal(words[0], undefined);
    fd.close();
  },

  'where buffers cannot be emptied, closed memory turns into private zeroes that keep the range'() {
    const fd = createMemfd('test', 2 * pageBytes);
    const other = Mapping.map(fd.number, 0, 2 * pageBytes, writable);
    for (const offset of [0, 100]) {
      const mapping = Mapping.map(fd.number, offset, pageBytes, { writable: true, detach: () => false });
      mapping.bytes.fill(0xff);
      mapping.close();
      assert.equal(mapping.bytes.length, pageBytes);
      assert(mapping.bytes.every((byte) => byte === 0));
      mapping.bytes.fill(0x11);
      assert.equal(other.bytes[offset], 0xff);
      const line = mapsLine(mapping.address - offset);
      assert.doesNotMatch(line ?? 'memfd', /memfd/);
    }
    other.close();
    fd.close();
  },

  'a buffer that cannot be emptied is reported'() {
    assert.equal(detach(new ArrayBuffer(8)), true);
    const memory = runInNewContext('new WebAssembly.Memory({ initial: 1 })') as { buffer: ArrayBuffer };
    assert.equal(detach(memory.buffer), false);
    assert.equal(memory.buffer.byteLength, 65536);
  },

  'anonymous memory is zeroed and goes with its views'() {
    const mapping = Mapping.anonymous(100);
    assert.equal(mapping.length, 100);
    assert(mapping.bytes.every((byte) => byte === 0));
    mapping.bytes.fill(1);
    mapping.close();
    assert.equal(mapping.bytes.length, 0);
    assert.throws(() => Mapping.anonymous(0), { code: 'memory-refused' });
  },

  'the collector neither unmaps memory in use nor trips over memory that is closed'() {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const fd = createMemfd('test', pageBytes);
    const kept = Mapping.map(fd.number, 0, pageBytes, writable);
    kept.bytes[0] = 42;
    for (let round = 0; round < 50; round += 1) {
      const views = [0, 1, 2].map(() => Mapping.map(fd.number, 0, pageBytes, writable));
      for (const each of views) {
        assert.equal(each.bytes[0], 42);
        each.close();
      }
      if (round % 10 === 0) collect();
    }
    collect();
    assert.equal(kept.bytes[0], 42);
    kept.close();
    collect();
    fd.close();
  },

  'the census counts descriptors by kind'() {
    const before = census();
    const held = [createMemfd('test', 1), createEventfd(), createEventfd(), ...socketPair()];
    const now = census();
    assert.equal(difference(before, now, 'memfd'), 1);
    assert.equal(difference(before, now, 'eventfd'), 2);
    assert.equal(difference(before, now, 'socket'), 2);
    assert.equal(difference(before, now, 'file'), 0);
    for (const each of held) each.close();
    assert.deepEqual(census(), before);
  },

  'a descriptor closes once and is not used afterwards'() {
    const fd = createMemfd('test', 8);
    const copy = fd.dup();
    assert.notEqual(copy.number, fd.number);
    const number = fd.number;
    fd.close();
    fd.close();
    assert.equal(fd.closed, true);
    assert.throws(() => fd.number, /invariant broken/);
    assert.equal(writeSync(copy.number, 'x'), 1);
    const released = copy.release();
    copy.close();
    assert.equal(writeSync(released, 'x'), 1);
    new Fd(released).close();
    assert.throws(() => new Fd(number).close(), { call: 'close', errnoName: 'EBADF' });
  },

  async 'a lock excludes other open file descriptions and nobody else'() {
    await withFolder((folder) => {
      const path = `${folder}/lock`;
      const [one, two] = [openSync(path, 'w'), openSync(path, 'r')];
      assert.equal(tryLock(one, 'exclusive'), true);
      assert.equal(tryLock(one, 'exclusive'), true);
      assert.equal(tryLock(two, 'exclusive'), false);
      assert.equal(tryLock(two, 'shared'), false);
      unlock(one);
      assert.equal(tryLock(two, 'shared'), true);
      assert.equal(tryLock(one, 'shared'), true);
      assert.equal(tryLock(one, 'exclusive'), false);
      closeSync(two);
      assert.equal(tryLock(one, 'exclusive'), true);
      closeSync(one);
      assert.throws(() => tryLock(one, 'shared'), { call: 'flock', errnoName: 'EBADF' });
    });
  },

  'the largest view is possible'() {
    const { output, status } = runApart(`
      import { Mapping } from 'libc/mapping';
      import { createMemfd } from 'libc/memfd';
      const length = ${limits.viewMaxBytes};
      const fd = createMemfd('large', length);
      const mapping = Mapping.map(fd.number, 0, length, { writable: true });
      mapping.bytes[length - 1] = 9;
      console.log(mapping.bytes.length === length, mapping.bytes[length - 1]);
      mapping.close();
      console.log(mapping.bytes.length);
    `);
    assert.equal(output, 'true 9\n0\n');
    assert.equal(status, 0);
  },
});
