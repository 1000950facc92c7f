import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import type { FastifyInstance, InjectOptions } from 'fastify';
import { assertProblem, type Case, get, put } from './problem-cases.ts';
import { makeServer, settle, startWorld, type World } from './support.ts';

const uuid = '2f5dbe1c-6f3a-4a57-9a0e-0a6d3f1c9b42';
const xenBus = { domain: 'vm1', transport: 'xen', role: 'driver' };

async function ready(t: TestContext): Promise<{ world: World; app: FastifyInstance }> {
  const world = await startWorld(t);
  const app = await makeServer(t, world);
  const created = async (call: InjectOptions) => assert.equal((await app.inject(call)).statusCode, 201);
  await created(put('domains/vm1', { xen: { name: 'guest' } }));
  await created(put('domains/plain', {}));
  await created(put('buses/b', xenBus));
  await created(put('backends/rng', { type: 'rng' }));
  await created(put('attachments/a', { bus: 'b', backend: 'rng' }));
  return { world, app };
}

describe('api: Xen domains', () => {
  it('show what stands behind them, and buses and attachments follow', async (t) => {
    const { world, app } = await ready(t);
    const statusOf = async (path: string) => (await app.inject(get(`/v1/${path}`))).json().status;
    assert.deepEqual(await statusOf('domains/vm1'), {
      state: 'absent',
      reason: null,
      domid: null,
      name: null,
      uuid: null,
      buses: ['b'],
      stuckShares: [],
    });
    const bus = await statusOf('buses/b');
    assert.deepEqual([bus.state, bus.reason], ['pending', 'domain vm1 is not running']);
    assert.equal((await statusOf('attachments/a')).state, 'pending');
    world.xen.run({ domid: 7, name: 'guest', uuid });
    await settle();
    const { state, domid, name, uuid: shown } = await statusOf('domains/vm1');
    assert.deepEqual([state, domid, name, shown], ['running', 7, 'guest', uuid]);
    const grants = { persistent: true, hits: 1, misses: 2, evictions: 3, faults: 4, mappedPages: 5 };
    const diagnosis = 'grant 9 of domain 7 cannot be mapped (EINVAL)';
    Object.assign(world.lane.buses.get('b')!.snapshot, { state: 'connected', peer: { domid: 7 }, grants, diagnosis });
    const open = await statusOf('buses/b');
    assert.deepEqual([open.state, open.address, open.peer], ['connected', 'xen:7/device/vmsg/0', { domid: 7 }]);
    assert.deepEqual([open.grants, open.diagnosis], [grants, diagnosis]);
    assert.deepEqual((await app.inject(get('/v1/channels/b'))).json().peer, { domid: 7 });
    assert.equal((await statusOf('attachments/a')).state, 'active');
  });

  it('of loopback always run, under a number that stays', async (t) => {
    const { app } = await ready(t);
    const { status } = (await app.inject(get('/v1/domains/plain'))).json();
    assert.deepEqual([status.state, status.domid, status.name], ['running', 1, null]);
  });

  const cases: Case[] = [
    {
      name: 'a domain with a name and a UUID',
      call: put('domains/n', { xen: { name: 'x', uuid } }),
      code: 'invalid-request',
      detail: /xen needs a name or a uuid, not both/,
      pointer: '/xen',
    },
    {
      name: 'half a UUID',
      call: put('domains/n', { xen: { uuid: '2f5dbe1c' } }),
      code: 'invalid-request',
      detail: /uuid must match/,
      pointer: '/xen/uuid',
    },
    {
      name: 'another name for a domain',
      call: put('domains/vm1', { xen: { name: 'other' } }),
      code: 'immutable',
      detail: /xen of domain "vm1" cannot change/,
      pointer: '/xen',
    },
    {
      name: 'the name of another domain',
      call: put('domains/n', { xen: { name: 'guest' } }),
      code: 'domain-taken',
      detail: /domain "vm1" has the name guest too/,
      pointer: '/xen/name',
    },
    {
      name: 'a loopback bus of a Xen domain',
      call: put('buses/n', { ...xenBus, transport: 'loopback' }),
      code: 'invalid-request',
      detail: /domain "vm1" needs transport xen/,
      pointer: '/transport',
    },
    {
      name: 'a Xen bus of a loopback domain',
      call: put('buses/n', { ...xenBus, domain: 'plain' }),
      code: 'invalid-request',
      detail: /domain "plain" needs transport loopback/,
      pointer: '/transport',
    },
    {
      name: 'an index that another bus has',
      call: put('buses/n', { ...xenBus, index: 0 }),
      code: 'bus-index-taken',
      detail: /index 0 of domain "vm1" belongs to bus "b"/,
      pointer: '/index',
    },
    {
      name: 'a pool that is no number of pages',
      call: put('buses/n', { ...xenBus, index: 1, poolMaxBytes: 5000 }),
      code: 'invalid-request',
      detail: /poolMaxBytes must be multiple of 4096/,
      pointer: '/poolMaxBytes',
    },
    {
      name: 'users of a Xen bus',
      call: put('buses/n', { ...xenBus, index: 1, admittedUids: [0] }),
      code: 'invalid-request',
      detail: /admittedUids is not for a bus of transport xen/,
      pointer: '/admittedUids',
    },
    {
      name: 'a way to handle stuck memory where nothing is served',
      call: put('buses/n', { ...xenBus, index: 1, onStuck: 'destroy-mapper' }),
      code: 'invalid-request',
      detail: /onStuck is for a bus of role device/,
      pointer: '/onStuck',
    },
  ];
  for (const { name, call, ...wanted } of cases) {
    it(`refuse ${name}`, async (t) => {
      const { app } = await ready(t);
      assertProblem(await app.inject(call), wanted);
    });
  }
});
