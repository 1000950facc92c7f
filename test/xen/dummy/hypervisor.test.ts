import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LoopPoller } from '../../../src/libc/poll.ts';
import { XenHypervisor } from '../../../src/xen/hypervisor.ts';
import { XsmDetector } from '../../../src/xen/xsm.ts';
import { probeGuests } from '../../support/xen-guest-pair.ts';
import { createDomain } from '../support/domains.ts';

test('the security module is found out', () => {
  const poller = new LoopPoller();
  const control = new XenHypervisor(poller).openControl();
  assert.equal(new XsmDetector(control).verdict().mode, 'dummy');
  control.close();
  poller.close();
});

test('a guest maps pages of another, and binds to its ports', async () => {
  const { shared, mapped } = await probeGuests(createDomain);
  assert.equal(typeof shared.port, 'number');
  assert.deepEqual(mapped, { page: 42, port: 'bound' });
});
