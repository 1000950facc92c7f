import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { census } from '../../src/libc/census.ts';
import { ForeignFd } from '../../src/libc/fd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { TranslateFault } from '../../src/ports/memory.ts';
import { GuestMemory } from '../../src/vhost-user/guest-memory.ts';
import { InflightFile } from '../../src/vhost-user/inflight-file.ts';

const before = census();
const fd = new ForeignFd(createMemfd('guest', 16_384).release());
const host = Mapping.map(fd.number, 0, 16_384, { writable: true });
after(() => {
  host.close();
  fd.close();
  assert.deepEqual(census(), before);
});

const region = (guestAddress: bigint, mmapOffset: bigint, userAddress = guestAddress + 0x1_0000n) => ({
  guestAddress,
  size: 4096n,
  userAddress,
  mmapOffset,
});

function withMemory(run: (memory: GuestMemory) => void): void {
  const memory = new GuestMemory();
  assert.equal(memory.add(region(0x10_0000_0000n, 0n), fd), undefined);
  assert.equal(memory.add(region(0x10_0000_1000n, 8192n), fd), undefined);
  run(memory);
  memory.close();
}

function translated(memory: GuestMemory, hi: number, lo: number, length: number) {
  const pieces: Uint8Array[] = [];
  const lease = memory.translate(hi, lo, length, 'write', pieces);
  return { lease, pieces };
}

test('an address leads to the bytes of its file, across neighbours too', () =>
  withMemory((memory) => {
    const { lease, pieces } = translated(memory, 0x10, 0xff0, 32);
    assert(!(lease instanceof TranslateFault));
    for (const piece of pieces) piece.fill(7);
    assert.deepEqual(
      pieces.map((piece) => piece.length),
      [16, 16],
    );
    assert.equal(
      host.bytes.subarray(0xff0, 0x1000).every((byte) => byte === 7),
      true,
    );
    assert.equal(
      host.bytes.subarray(8192, 8192 + 16).every((byte) => byte === 7),
      true,
    );
    lease.release();
    lease.release();
  }));

test('what is not there is a fault, and nothing is appended', () =>
  withMemory((memory) => {
    for (const [hi, lo, length] of [
      [0, 0, 1],
      [0x10, 0x2000, 1],
      [0x10, 0x1ff0, 17],
      [0xffff_ffff, 0xffff_ffff, 2],
    ] as const) {
      const { lease, pieces } = translated(memory, hi, lo, length);
      assert(lease instanceof TranslateFault);
      assert.deepEqual(pieces, []);
    }
  }));

test('memory that is in use stays mapped after its removal', () =>
  withMemory((memory) => {
    const { lease, pieces } = translated(memory, 0x10, 0, 8);
    assert(!(lease instanceof TranslateFault));
    assert.equal(memory.remove(region(0x10_0000_0000n, 0n)), true);
    assert.equal(memory.remove(region(0x10_0000_0000n, 0n)), false);
    assert(translated(memory, 0x10, 0, 8).lease instanceof TranslateFault);
    pieces[0]!.fill(9);
    assert.equal(host.bytes[0], 9);
    lease.release();
    assert.equal(pieces[0]!.length, 0);
  }));

test('user addresses are those of queues', () =>
  withMemory((memory) => {
    assert.equal(memory.guestAddressOf(0x10_0001_0010n), 0x10_0000_0010n);
    assert.equal(memory.guestAddressOf(0x10_0001_2000n), undefined);
  }));

test('regions that cannot be are refused with a reason', () =>
  withMemory((memory) => {
    const refusals: ReadonlyArray<readonly [Partial<ReturnType<typeof region>>, RegExp]> = [
      [{ size: 0n }, /a region of 0 bytes/],
      [{ size: 1n << 40n }, /a region of \d+ bytes/],
      [{ guestAddress: (1n << 64n) - 1n }, /beyond the last address/],
      [{ guestAddress: 0x10_0000_0fffn }, /guest addresses that overlap/],
      [{ userAddress: 0x10_0001_0001n }, /user addresses that overlap/],
      [{ mmapOffset: 12_289n }, /the file has 16384 bytes/],
      [{ mmapOffset: (1n << 64n) - 1n }, /the file has 16384 bytes/],
    ];
    for (const [change, reason] of refusals)
      assert.match(memory.add({ ...region(0n, 0n), ...change }, fd) ?? '', reason);
    const unsealed = new ForeignFd(createMemfd('unsealed', 4096, 0).release());
    assert.match(memory.add(region(0n, 0n), unsealed) ?? '', /not sealed against shrinking/);
    unsealed.close();
    assert.equal(memory.count, 2);
  }));

test('an in-flight file gives every queue a log of its own', () => {
  const created = InflightFile.create(2, 8, 'split');
  assert(typeof created === 'object');
  const [first, second] = [0, 1].map((index) => created.file.logOf(index, 8, 'split')!);
  assert.equal(first?.length, 16 + 8 * 16);
  first!.fill(1);
  assert.equal(
    second!.every((byte) => byte === 0),
    true,
  );
  assert.equal(second!.byteOffset % 64, 0);
  assert.equal(created.file.logOf(2, 8, 'split'), undefined);
  assert.equal(created.file.logOf(0, 16, 'split'), undefined);
  assert.equal(created.file.logOf(0, 8, 'packed'), undefined);
  const again = InflightFile.open(created.file.area, 'split', created.fd);
  assert(typeof again === 'object');
  assert.deepEqual(again.logOf(0, 8, 'split'), first);
  for (const bad of [
    { queues: 0 },
    { queues: 300 },
    { queueSize: 0 },
    { mmapSize: 10n },
    { mmapOffset: 1n },
    { mmapOffset: 64n },
  ]) {
    assert.equal(typeof InflightFile.open({ ...created.file.area, ...bad }, 'split', created.fd), 'string');
  }
  assert.equal(typeof InflightFile.create(1, 0, 'split'), 'string');
  for (const each of [again, created.file, created.fd]) each.close();
});
