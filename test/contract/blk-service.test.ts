import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BlkDriver, connect, type GuestBus, VirtioDevice } from '../../src/guest/index.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { isCode } from '../support/guest-fixture.ts';
import { runVmsg } from '../support/run-command.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

/** Disks through the real service: who may have an image, and what a restart keeps. */
const loopback = { domain: 'guests', transport: 'loopback', role: 'driver' };
const home = new ServiceHome({
  domains: { guests: {} },
  buses: { a: loopback, b: loopback },
  backends: {
    base: { type: 'blk', path: 'base.img', readOnly: true },
    again: { type: 'blk', path: 'base.img', readOnly: true },
    own: { type: 'blk', path: 'own.img', queues: 4 },
  },
  attachments: {
    'a-base': { bus: 'a', backend: 'base', deviceNumber: 1 },
    'b-base': { bus: 'b', backend: 'base', deviceNumber: 1 },
    'b-again': { bus: 'b', backend: 'again', deviceNumber: 2 },
    'a-own': { bus: 'a', backend: 'own', deviceNumber: 3 },
  },
});
const base = join(home.directory, 'base.img');
const content = Buffer.alloc(256 * 1024 + 77, 'shared content ');
const padded = Buffer.concat([content, Buffer.alloc(512 - (content.length % 512))]);

let service: ServiceProcess;
before(async () => {
  writeFileSync(base, content);
  writeFileSync(join(home.directory, 'own.img'), Buffer.alloc(1024 * 1024));
  service = await home.start();
});
after(async () => {
  assert.equal(await service.stop(), 0);
  home.remove();
});

const put = (kind: string, id: string, spec: object): Promise<unknown> =>
  service.api.call('PUT', `/v1/${kind}/${id}`, spec);
const remove = (kind: string, id: string): Promise<unknown> => service.api.call('DELETE', `/v1/${kind}/${id}`);

async function withBuses(act: (a: GuestBus, b: GuestBus) => Promise<void>): Promise<void> {
  const [a, b] = await Promise.all(
    ['a', 'b'].map((name) => connect({ path: home.busPath(name), reconnect: { totalMs: 60_000 } })),
  );
  await act(a!, b!);
  a!.close();
  b!.close();
}

const bytes = (value: string): Uint8Array => new TextEncoder().encode(value);
const text = (value: Uint8Array): string => new TextDecoder().decode(value);

/** One request to queue 0 of a device without a driver of its own. */
async function ask(bus: GuestBus, number: number, question: Uint8Array): Promise<Uint8Array> {
  const device = await VirtioDevice.open(bus, number);
  const queue = await device.addQueue(0);
  await device.start();
  const memory = device.alloc(256);
  memory.bytes.set(question);
  const length = await queue.submit([memory.range(0, question.length)], [memory.range(128, 128)]);
  const answer = memory.bytes.slice(128, 128 + length);
  await device.close();
  return answer;
}

test('guests of two buses read one image at the same time, through one backend and through two', () =>
  withBuses(async (a, b) => {
    const disks = [await BlkDriver.open(a, 1), await BlkDriver.open(b, 1), await BlkDriver.open(b, 2)];
    for (const disk of disks) {
      assert.ok(disk.readOnly && !disk.device.features.has(blkFeature.DISCARD));
      assert.equal(disk.capacityBytes, padded.length);
    }
    for (const bytes of await Promise.all(disks.map((disk) => disk.read(0, padded.length)))) {
      assert.ok(padded.equals(bytes));
    }
    await assert.rejects(disks[0]!.write(0, new Uint8Array(512)), isCode('invalid-request', /read-only/));
  }));

test('who reads an image keeps a writer out, and a writer everybody; the reason names the image', async () => {
  const inUse = /\/(base|own)\.img: in use by another disk or process that (has it open|writes to it)/;
  await put('backends', 'writer', { type: 'blk', path: base });
  await assert.rejects(put('attachments', 'writer', { bus: 'b', backend: 'writer' }), inUse);
  await remove('backends', 'writer');
  const own = { type: 'blk', path: join(home.directory, 'own.img') };
  await put('backends', 'reader', { ...own, readOnly: true });
  await assert.rejects(put('attachments', 'reader', { bus: 'b', backend: 'reader' }), inUse);
  await remove('backends', 'reader');
  await put('backends', 'second', own);
  await assert.rejects(put('attachments', 'second', { bus: 'b', backend: 'second' }), inUse);
  await remove('backends', 'second');
  const busy = /"own" is writable and belongs to attachment "a-own"/;
  await assert.rejects(put('attachments', 'twice', { bus: 'b', backend: 'own' }), busy);
});

test('queues and cache mode are as they were after a kill, and I/O goes on', () =>
  withBuses(async (a) => {
    const disk = await BlkDriver.open(a, 3, { queues: 4, depth: 8 });
    assert.equal(disk.queues, 4);
    await disk.setWriteback(false);
    let resumed = 0;
    a.on('reconnected', (event) => {
      assert.ok(event.resumed);
      resumed += 1;
    });
    const block = new Uint8Array(64 * 1024).fill(3);
    const writing = Array.from({ length: 16 }, (_, i) => disk.write(i * 128, block));
    await service.kill();
    service = await home.start();
    await Promise.all(writing);
    await eventually(async () => (resumed === 1 ? true : undefined), 'the guest resumes');
    assert.ok(readFileSync(join(home.directory, 'own.img')).equals(Buffer.alloc(1024 * 1024, 3)));
    const config = await disk.device.config.read(32, 4);
    assert.deepEqual([...config], [0, 0, 4, 0], 'writeback is off, four queues');
    await disk.setWriteback(true);
    await disk.close();
  }));

test('the command makes a disk with queues, a shared memory device and the template', async () => {
  const vmsg = (...args: string[]) => runVmsg([...args, '--api', home.apiSocket]);
  const made = await vmsg('backend', 'add', 'wide', '--type', 'blk', '--path', base, '--read-only', '--queues', '8');
  assert.equal(made.code, 0, made.stderr);
  assert.equal((await vmsg('backend', 'add', 'memory', '--type', 'shm', '--bytes', '8192')).code, 0);
  assert.equal((await vmsg('backend', 'add', 'greeter', '--type', 'template', '--greeting', 'Moin')).code, 0);
  assert.equal(
    (await vmsg('backend', 'add', 'bad', '--type', 'blk', '--path', base, '--queues', '17')).code === 0,
    false,
  );
  const { stdout } = await vmsg('backend', 'ls');
  assert.match(stdout, /memory +shm +8192 bytes/);
  assert.match(stdout, /greeter +template +Moin/);
  const wide = (await service.api.call('GET', '/v1/backends/wide')).body as { spec: { queues?: number } };
  assert.equal(wide.spec.queues, 8);
  for (const [id, deviceNumber] of [
    ['memory', 6],
    ['greeter', 7],
  ] as const) {
    await put('attachments', id, { bus: 'b', backend: id, deviceNumber });
  }
  await withBuses(async (_, b) => {
    assert.equal(text(await ask(b, 7, bytes('World'))), 'Moin, World!');
    assert.deepEqual([...(await ask(b, 6, bytes('?')))], [1, 0, 0, 0]);
  });
  for (const id of ['memory', 'greeter']) await remove('attachments', id);
  for (const id of ['wide', 'memory', 'greeter']) await remove('backends', id);
});
