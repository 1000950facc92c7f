import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { probeGuests } from '../../support/xen-guest-pair.ts';
import type { FollowerLine } from '../guests/follower.ts';
import { XenBench } from '../support/bench.ts';
import type { DomainCommand } from '../support/domains.ts';
import { GuestProgram } from '../support/program.ts';
import {
  attachServed,
  clearImage,
  goesOn,
  hasVersions,
  inUse,
  leaves,
  moveData,
  serveEmpty,
  serveRandom,
} from '../support/serving.ts';

const memory = { memory: 'pool', memoryBytes: 8 * 1024 * 1024 } as const;

const bench = new XenBench({ user: {}, server: { role: 'device' } });
let server: DomainCommand;

before(async () => {
  await bench.start();
  await attachServed(bench, 'user', 'server');
  await bench.create('user', 'server');
});
after(() => bench.close());

test('SILO lets no guest map pages of another, or make a port for it', async () => {
  const { shared, mapped } = await probeGuests(bench.domain('user'), bench.domain('server'));
  assert.ok(shared.reference > 0);
  assert.deepEqual([shared.port, mapped], ['EPERM', { page: 'EINVAL', port: 'none' }]);
});

test('what Xen forbids domUs is done by dom0: data of a disk of one domU in another', async (t) => {
  server = await serveRandom(bench.domain('server'));
  const { status } = await inUse(bench, 'server');
  assert.equal(status.dataPath, 'shadow');
  assert.match(
    String(status.dataPathReason),
    /^Xen runs with XSM SILO \(.+\): domains cannot map each other's memory$/,
  );
  t.diagnostic(await moveData(bench, status.deviceNumber!, memory));
});

test('the direct path is refused with the reason', async () => {
  await bench.put('backends', 'forced', { type: 'guest', bus: 'server', deviceNumber: 0, dataPath: 'direct' });
  await assert.rejects(
    bench.put('attachments', 'forced', { bus: 'user', backend: 'forced' }),
    /the data path cannot be direct: Xen runs with XSM SILO/,
  );
});

test('the serving process is killed during I/O, then the service is: the domU resumes and nothing is lost', async (t) => {
  await clearImage(bench.domain('server'));
  const order = { ...memory, reconnectMs: 60_000 };
  const follower = await GuestProgram.start<FollowerLine>(bench.domain('user'), 'follower', order);
  await goesOn(follower);
  const codes = await leaves(follower, () => server.kill('KILL'));
  assert.deepEqual(codes, ['not-found', 'not-found']);
  server = await serveEmpty(bench.domain('server'));
  await follower.count('taken', 4);
  await goesOn(follower);

  await bench.service.kill();
  await bench.start();
  assert.equal((await follower.count('reconnected', 1)).resumed, true);
  await goesOn(follower);
  assert.equal((await inUse(bench, 'server')).status.recovery, 'resume');
  assert.equal(follower.all('left').length, 2, 'nothing left when the service was killed');
  const end = await follower.end('end');
  assert.equal(end.acknowledged, end.submitted);
  assert.ok(await hasVersions(bench.domain('server'), end.versions));
  t.diagnostic(`${end.acknowledged} requests`);
});
