import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { HypervisorError } from '../../src/xen/errors.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { NotingHandler, XenBench } from '../support/xen-bench.ts';
import type { XenFrontend } from '../support/xen-frontend.ts';

const zero = asDomid(0)!;
const backendDirectory = '/local/domain/0/backend/vmsg/1/0';

const working = (b: XenBench, guest: XenFrontend): void => {
  assert.equal(b.snapshot.state, 'connected');
  assert.equal(guest.ask('PING', { data: 77 }).data, 77);
};

/** Mappings and channels that the service holds while a guest of one-page rings is there. */
const heldWhileConnected = { mappings: 3, shares: 0, channels: 1, watches: 3 };
const heldWhileOffered = { mappings: 0, shares: 0, channels: 0, watches: 3 };

describe('xen bus: handshake', () => {
  test('a bus is offered, a guest answers and messages flow both ways', async () => {
    const b = new XenBench();
    b.start((runtime) => void b.attach(runtime, new FakeBackend()));
    assert.deepEqual(b.xen.census(zero), heldWhileOffered);
    const guest = b.frontend();
    assert.deepEqual([guest.node('state'), guest.node('backend-id')], ['1', '0']);
    guest.connect();
    assert.deepEqual(b.xen.census(zero), heldWhileConnected);
    assert.deepEqual([b.snapshot.epoch, b.snapshot.peer], [1n, { domid: b.domid }]);
    assert.deepEqual(guest.alive, { guest: 1, service: 1 });
    assert.match(guest.backend('token')!, /^[0-9a-f]{32}$/);
    assert.equal(guest.backend('resumed'), '0');
    working(b, guest);
    assert.equal(guest.ask('GET_DEVICE_INFO', {}, 0).deviceId, 42);
    await b.service.runtime.close(true);
    assert.equal(guest.node('state'), undefined, 'the directory of the guest is removed with the bus');
    await b.end();
  });

  test('the offer says what the service can do', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend();
    const offer = Object.fromEntries(
      (guest.xenstore.directory(backendDirectory) ?? []).map((name) => [name, guest.backend(name)]),
    );
    assert.deepEqual(offer, {
      dialects: '5',
      epoch: '1',
      'feature-persistent': '1',
      'feature-queue-evtchn': '1',
      'feature-sleep-words': '1',
      frontend: guest.path,
      'frontend-id': '1',
      'max-message-size': '64',
      'max-pool-bytes': '1048576',
      'max-ring-pages': String(limits.xenRingMaxPages),
      online: '1',
      revision: '1',
      role: 'driver',
      state: '2',
      'transport-features': '0',
      version: '1',
    });
    await b.end();
  });

  test('the guest owns its directory and only reads that of the service; other guests see neither', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend();
    const other = b.xen.hypervisorFor(b.xen.createDomain('vm2')).openXenstore();
    guest.write('error', 'mine');
    assert.throws(() => guest.xenstore.write(`${backendDirectory}/state`, '4'), /EACCES/);
    for (const path of [`${backendDirectory}/state`, `${guest.path}/state`, backendDirectory]) {
      assert.equal(other.read(path), undefined, path);
    }
    await b.end();
  });

  test('rings of several pages work, whatever the order of their references', async () => {
    const b = new XenBench({ scatteredReferences: true });
    b.start();
    const guest = b.frontend({ toServicePages: 3, toGuestPages: limits.xenRingMaxPages }).connect();
    // More messages than the first page of the ring has slots for.
    for (let i = 0; i < 300; i++) assert.equal(guest.ask('PING', { data: i }).data, i);
    await b.end();
  });

  test('without sleep words every publication rings', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect({ 'feature-sleep-words': undefined });
    const before = guest.events;
    guest.ask('PING', { data: 1 });
    assert.ok(guest.events > before);
    await b.end();
  });

  test('an answer to an earlier offer is not taken for one to this', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend();
    guest.prepare();
    guest.submit({ ...guest.answer(), epoch: '0' });
    guest.submit({ ...guest.answer(), epoch: '2' });
    guest.submit({ ...guest.answer(), epoch: '01' });
    assert.deepEqual([guest.backendState, b.events.length], [2, 0]);
    guest.submit(guest.answer());
    working(b, guest);
    await b.end();
  });

  test('nodes that change while the guest is connected mean nothing', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    const before = b.xen.census(zero);
    for (const name of ['ring-to-service-refs', 'event-channel', 'epoch', 'max-message-size', 'backend']) {
      guest.write(name, '99');
      guest.setState(4);
    }
    for (const state of ['2', '9', 'x', '', '4294967297', undefined]) {
      guest.write('state', state);
      b.run();
    }
    working(b, guest);
    assert.deepEqual(b.xen.census(zero), before);
    await b.end();
  });
});

describe('xen bus: a bad answer', () => {
  const refs = (count: number): string => Array.from({ length: count }, (_, i) => 8 + i).join(' ');
  const bad: readonly (readonly [string, string | undefined, RegExp])[] = [
    ['version', undefined, /^version is missing$/],
    ['version', '2', /^version is "2", not a number from 1 to 1$/],
    ['dialect', '4', /^dialect is "4"/],
    ['max-message-size', '51', /^max-message-size is "51"/],
    ['max-message-size', '18446744073709551616', /^max-message-size is/],
    ['max-message-size', '0x40', /^max-message-size is/],
    ['max-message-size', `${'9'.repeat(1000)}`, /^max-message-size is "9{40}"/],
    ['ring-to-service-refs', undefined, /^ring-to-service-refs is missing$/],
    ['ring-to-service-refs', '', /no grant reference$/],
    ['ring-to-service-refs', '8  9', /^ring-to-service-refs has "" in it/],
    ['ring-to-service-refs', '0', /^ring-to-service-refs has "0" in it/],
    ['ring-to-service-refs', '4294967296', /^ring-to-service-refs has "4294967296" in it/],
    ['ring-to-service-refs', '5000', /^ring-to-service-refs of domain 1 cannot be mapped: .* EINVAL/],
    ['ring-to-guest-refs', refs(limits.xenRingMaxPages + 1), /not a list of 1 to 16 references/],
    ['ring-to-guest-refs', '9 9', /^a grant reference is there twice/],
    ['ring-to-guest-refs', '8', /^a grant reference is there twice/],
    ['ring-to-guest-refs', '-1', /no grant reference/],
    ['event-channel', '0', /^event-channel is "0"/],
    ['event-channel', '77', /^event channel port 77 of domain 1 cannot be bound: .* EINVAL/],
    ['feature-sleep-words', 'yes', /^feature-sleep-words is "yes", not 1 or 0$/],
    ['feature-persistent', '2', /^feature-persistent is/],
    ['resume-epoch', '1\u0000', /^resume-epoch is "1\\u0000"/],
    ['resume-epoch', '7', /^resume-token is not 32 hexadecimal digits$/],
  ];
  for (const [name, value, reason] of bad) {
    test(`${name} ${value === undefined ? 'missing' : JSON.stringify(value.slice(0, 30))}`, async () => {
      const b = new XenBench();
      b.start();
      const guest = b.frontend();
      guest.prepare();
      guest.submit({ ...guest.answer(), [name]: value });
      assert.deepEqual([guest.backendState, b.events.length], [6, 1]);
      assert.match(guest.backend('error')!, reason);
      assert.match(b.reasons('bus-refused')[0]!, reason);
      assert.deepEqual(b.xen.census(zero), heldWhileOffered);
      guest.setState(6);
      guest.connect();
      working(b, guest);
      assert.equal(guest.backend('error'), undefined);
      await b.end();
    });
  }

  test('pages granted to another domain, and an alive byte that is not set', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend();
    guest.prepare();
    const elsewhere = guest.sharer.share(b.xen.createDomain('vm2'), 1);
    guest.submit({ ...guest.answer(), 'ring-to-guest-refs': String(elsewhere.references[0]) });
    assert.match(guest.backend('error')!, /^ring-to-guest-refs of domain 1 cannot be mapped/);
    guest.setState(6);
    guest.aliveGuest = 0;
    guest.submit(guest.answer());
    assert.match(guest.backend('error')!, /alive byte/);
    assert.deepEqual(b.xen.census(zero), heldWhileOffered);
    guest.setState(1);
    guest.connect();
    await b.end();
  });

  test('a guest that tries again and again is let try at a bounded rate', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend();
    guest.prepare();
    const seconds = 20;
    for (let ms = 0; ms < seconds * 1000; ms += 10) {
      if (guest.backendState === 2) guest.submit({ ...guest.answer(), version: '9' });
      else guest.setState(6);
      b.advance(10);
    }
    const most = limits.xenOfferBurst + (seconds * 1000) / limits.xenOfferIntervalMs;
    const refused = b.reasons('bus-refused').length;
    assert.ok(refused <= most && refused >= most / 2, `${refused} offers, at most ${most}`);
    b.advance(1000);
    guest.setState(6);
    b.advance(1000);
    guest.connect();
    await b.end();
  });
});

test('xen bus: what xenstored refuses is told, and tried again', async () => {
  const b = new XenBench();
  const process = b.xen.hypervisorFor(zero);
  const open = process.openXenstore.bind(process);
  let failures = 0;
  process.openXenstore = () => {
    const xenstore = open();
    const transaction = xenstore.transaction.bind(xenstore);
    xenstore.transaction = (body) => {
      failures -= 1;
      if (failures >= 0) throw new HypervisorError('xs_transaction_end', 'EAGAIN');
      return transaction(body);
    };
    return xenstore;
  };
  const transport = b.transport(process);
  const handler = new NotingHandler();
  transport.start(handler);
  const guest = b.frontend();
  guest.prepare();
  failures = 1;
  guest.submit(guest.answer());
  assert.deepEqual(handler.log, ['refused: xs_transaction_end: EAGAIN']);
  assert.equal(b.xen.census(zero).mappings, 0);
  failures = 1;
  guest.setState(6);
  assert.equal(handler.log.at(-1), 'diagnosed: xs_transaction_end: EAGAIN');
  b.advance(limits.xenDirectoryPauseMs);
  guest.connect();
  assert.equal(handler.log.at(-1), 'connected');
  failures = 100;
  transport.close(true);
  assert.deepEqual(b.xen.census(zero), { mappings: 0, shares: 0, channels: 0, watches: 0 });
  b.xen.close();
});
