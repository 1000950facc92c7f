import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import type { BusStatus } from '../../../src/bridge/commands.ts';
import type { DataLine, DataOrder } from '../guests/data.ts';
import { XenBench } from '../support/bench.ts';
import { seededContent } from '../support/content.ts';
import { GuestProgram } from '../support/program.ts';

const diskBytes = 64 * 1024 * 1024;
const scratchBytes = 16 * 1024 * 1024;
const pings = 400;

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

const bench = new XenBench({ one: {}, two: {} });
const disk = bench.image('disk.img', diskBytes);
const scratch = bench.image('scratch.img', scratchBytes);
let expected = '';

before(async () => {
  const content = seededContent(1, diskBytes);
  writeFileSync(disk, content);
  expected = sha256(content);
  await bench.start();
  await bench.create('one', 'two');
  await bench.put('backends', 'disk', { type: 'blk', path: disk, readOnly: true });
  await bench.put('backends', 'scratch', { type: 'blk', path: scratch });
  await bench.attach('one', 'disk');
});
after(() => bench.close());

/** Each way to share memory, and what the service's counters must say about it. */
const ways = {
  'memory in regions that are granted once': {
    order: { memory: 'pool' },
    isUsed: ({ regions, grants }: BusStatus) => regions > 0 && (grants?.misses ?? 0) === 0,
  },
  'memory by its own grants': {
    order: { memory: 'grants', persistent: false },
    isUsed: ({ regions, grants }: BusStatus) => regions === 0 && grants!.misses > 100 && grants!.hits === 0,
  },
  'memory by its own grants that stay mapped': {
    order: { memory: 'grants', persistent: true },
    isUsed: ({ regions, grants }: BusStatus) => regions === 0 && grants!.hits > 100,
  },
} as const;

for (const [n, [title, { order, isUsed }]] of Object.entries(ways).entries()) {
  test(`${title}: a domU reads 64 MiB and writes 16 MiB that another one reads`, async (t) => {
    const seed = n + 2;
    const written = sha256(seededContent(seed, scratchBytes));
    const { status } = await bench.attach('one', 'scratch');
    const first: DataOrder = {
      ...order,
      pings,
      read: { device: 0, bytes: diskBytes },
      write: { device: status.deviceNumber!, bytes: scratchBytes, seed },
    };
    const one = await GuestProgram.start<DataLine>(bench.domain('one'), 'data', first);
    const result = await one.count('done', 1);
    const bus = (await bench.service.bus('one')).status;
    assert.ok(isUsed(bus), JSON.stringify(bus));
    assert.equal(bus.diagnosis, null);
    assert.equal(result.sha256, expected);
    await bench.detach('one-scratch');
    await one.stop();

    assert.equal(sha256(readFileSync(scratch)), written, 'the image of dom0 has it');
    const there = (await bench.attach('two', 'scratch')).status;
    const two = await GuestProgram.start<DataLine>(bench.domain('two'), 'data', {
      ...order,
      read: { device: there.deviceNumber!, bytes: scratchBytes },
    } satisfies DataOrder);
    assert.equal((await two.count('done', 1)).sha256, written);
    await two.stop();
    await bench.detach('two-scratch');
    const { roundTripsPerSecond, readMBPerSecond, writeMBPerSecond } = result;
    t.diagnostic(`${roundTripsPerSecond} round trips/s, read ${readMBPerSecond} MB/s, write ${writeMBPerSecond} MB/s`);
  });
}
