import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseDataPath } from '../../src/bridge/shadow/data-path.ts';
import type { XsmVerdict } from '../../src/xen/xsm.ts';
import { isCode } from '../support/guest-fixture.ts';

const process = (bus: string) => ({ bus, transport: 'loopback' }) as const;
const domain = (bus: string) => ({ bus, transport: 'xen' }) as const;
const silo = (): XsmVerdict => ({ mode: 'silo', reason: 'xsm=silo' });
const dummy = (): XsmVerdict => ({ mode: 'dummy', reason: 'xsm=dummy' });
const unknown = (): XsmVerdict => ({ mode: 'unknown', reason: 'nobody knows' });
const unasked = (): XsmVerdict => assert.fail('Xen has nothing to do with it');

test('two processes, and two domains that may, pass memory on', () => {
  for (const wanted of ['auto', 'direct'] as const) {
    assert.deepEqual(chooseDataPath(wanted, process('a'), process('b'), unasked), { dataPath: 'relayed' });
    assert.deepEqual(chooseDataPath(wanted, domain('a'), domain('b'), dummy), { dataPath: 'relayed' });
  }
});

test('where memory cannot be passed on data is copied, and the reason says why', () => {
  const mixed = /the guest of bus x is a Xen domain and that of bus p a process/;
  for (const [driver, serving, xsm, reason] of [
    [domain('x'), process('p'), unasked, mixed],
    [process('p'), domain('x'), unasked, mixed],
    [domain('x'), domain('y'), silo, /XSM SILO \(xsm=silo\)/],
  ] as const) {
    const chosen = chooseDataPath('auto', driver, serving, xsm);
    assert.ok(chosen.dataPath === 'shadow');
    assert.match(chosen.reason, reason);
    const forced = (): unknown => chooseDataPath('direct', driver, serving, xsm);
    assert.throws(forced, isCode('backend-unusable', reason));
  }
});

test('where Xen does not say, data is copied unless it was told not to', () => {
  const chosen = chooseDataPath('auto', domain('x'), domain('y'), unknown);
  assert.ok(chosen.dataPath === 'shadow');
  assert.match(chosen.reason, /it is not known whether Xen lets domains map .* \(nobody knows\)/);
  assert.equal(chooseDataPath('direct', domain('x'), domain('y'), unknown).dataPath, 'relayed');
});

test('copying can be asked for anywhere', () => {
  const chosen = chooseDataPath('shadow', process('a'), process('b'), unasked);
  assert.deepEqual(chosen, { dataPath: 'shadow', reason: 'the backend asks for it' });
});
