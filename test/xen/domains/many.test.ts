import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { imageProblem } from '../../support/versioned-load.ts';
import type { VisitorLine, VisitorOrder } from '../guests/visitor.ts';
import { XenBench } from '../support/bench.ts';
import { GuestProgram } from '../support/program.ts';

const imageBytes = 64 * 4096;
const rounds = 2;
const names = ['one', 'two', 'three'] as const;
const memories = { one: 'pool', two: 'grants', three: 'pool' } as const;

const bench = new XenBench({ one: {}, two: {}, three: {} });
const images = new Map(names.map((name) => [name, bench.image(`${name}.img`, imageBytes)]));

before(async () => {
  await bench.start();
  await bench.put('backends', 'rng', { type: 'rng' });
  for (const name of names) {
    await bench.put('backends', name, { type: 'blk', path: images.get(name) });
    await bench.put('backends', `${name}-extra`, { type: 'blk', path: bench.image(`${name}-extra.img`, imageBytes) });
    // Before the domain is there: it finds its devices from its first moment.
    await bench.put('attachments', `${name}-disk`, { bus: name, backend: name, deviceNumber: 0 });
    await bench.put('attachments', `${name}-rng`, { bus: name, backend: 'rng', deviceNumber: 1 });
  }
  await bench.create(...names);
});
after(() => bench.close());

type Visitor = GuestProgram<VisitorLine>;

/** The disk that comes is used, and the disk and the rng device that stay are used on and on. */
async function comeAndGo(name: string, visitor: Visitor): Promise<string> {
  const used = visitor.next('used');
  const attachment = await bench.attach(name, `${name}-extra`);
  const { device } = await used;
  assert.equal(device, attachment.status.deviceNumber);
  const gone = visitor.next('gone');
  await bench.detach(attachment.id);
  const { code, devices, ...left } = await gone;
  assert.deepEqual([left.device, devices], [device, [0, 1]]);
  const before = await visitor.next('progress');
  await visitor.next('progress', ({ requests, random }) => requests >= before.requests + 20 && random > before.random);
  return code;
}

test('three domUs use a disk and an rng device each while other disks come and go', async (t) => {
  const visitors = new Map<string, Visitor>();
  for (const name of names) {
    const order: VisitorOrder = { memory: memories[name], disk: 0, rng: 1, memoryBytes: 4 * 1024 * 1024 };
    visitors.set(name, await GuestProgram.start(bench.domain(name), 'visitor', order));
  }
  await Promise.all([...visitors.values()].map((visitor) => visitor.count('begun', 1)));
  for (let round = 0; round < rounds; round++) {
    const codes = await Promise.all([...visitors].map(([name, visitor]) => comeAndGo(name, visitor)));
    assert.deepEqual(codes, ['not-found', 'not-found', 'not-found']);
  }
  for (const name of names) {
    const end = await visitors.get(name)!.end('end');
    assert.equal(end.acknowledged, end.submitted);
    assert.equal(imageProblem(readFileSync(images.get(name)!), end.versions), undefined);
    t.diagnostic(`${name}: ${end.acknowledged} requests`);
  }
});
