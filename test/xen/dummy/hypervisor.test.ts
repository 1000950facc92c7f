import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LoopPoller } from '../../../src/libc/poll.ts';
import { XenHypervisor } from '../../../src/xen/hypervisor.ts';
import { XsmDetector } from '../../../src/xen/xsm.ts';

test('the security module is found out', () => {
  const poller = new LoopPoller();
  const control = new XenHypervisor(poller).openControl();
  assert.equal(new XsmDetector(control).verdict().mode, 'dummy');
  control.close();
  poller.close();
});
