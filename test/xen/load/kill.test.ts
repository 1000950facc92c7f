import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { SeededRandom } from '../../support/random.ts';
import { imageProblem } from '../../support/versioned-load.ts';
import type { LoadLine, LoadOrder } from '../guests/load.ts';
import { XenBench } from '../support/bench.ts';
import { GuestProgram } from '../support/program.ts';

const kills = 20;
const blocks = 256;
const blockBytes = 4096;
/** One domU for each way to share memory. */
const ways = { pool: { memory: 'pool', memoryBytes: 2 * 1024 * 1024 }, grants: { memory: 'grants' } } as const;
const names = ['pool', 'grants'] as const;

const bench = new XenBench({ pool: {}, grants: {} });
const images = names.map((name) => bench.image(`${name}.img`, blocks * blockBytes));

before(async () => {
  await bench.start();
  await bench.create(...names);
});
after(() => bench.close());

test(`the service is killed ${kills} times; domUs resume, nothing acknowledged is lost or done twice`, async (t) => {
  const guests = await Promise.all(
    names.map(async (name, i) => {
      await bench.put('backends', name, { type: 'blk', path: images[i] });
      const { status } = await bench.attach(name, name);
      const order: LoadOrder = { ...ways[name], blocks, lanes: 8, disk: status.deviceNumber!, reconnectMs: 60_000 };
      return { id: `${name}-${name}`, program: await GuestProgram.start<LoadLine>(bench.domain(name), 'load', order) };
    }),
  );
  const random = new SeededRandom(2026);
  const goesOn = async (program: GuestProgram<LoadLine>): Promise<void> => {
    const now = (await program.next('progress')).acknowledged;
    await program.next('progress', ({ acknowledged }) => acknowledged >= now + 20);
  };
  const progress = () => Promise.all(guests.map(({ program }) => goesOn(program)));
  await progress();
  for (let n = 1; n <= kills; n++) {
    await sleep(random.below(100));
    await bench.service.kill();
    await bench.start();
    for (const { id, program } of guests) {
      await program.count('reconnected', n);
      assert.equal((await bench.service.attachment(id)).status.recovery, 'resume');
    }
    await progress();
  }
  for (const [i, { program }] of guests.entries()) {
    const end = await program.end('end');
    assert.equal(end.acknowledged, end.submitted, 'every request completed once');
    const resumes = program.all('reconnected');
    assert.equal(resumes.length, kills);
    assert.ok(
      resumes.every(({ resumed }) => resumed),
      'the devices kept their state',
    );
    assert.equal(imageProblem(readFileSync(images[i]!), end.versions), undefined);
    t.diagnostic(`${names[i]}: ${end.acknowledged} requests, ${resumes.length} resumes`);
  }
});
