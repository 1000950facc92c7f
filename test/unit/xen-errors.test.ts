import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import type { Closable } from '../../src/kit/scope.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { HypervisorError } from '../../src/xen/errors.ts';
import { gntallocLimitPages } from '../../src/xen/gntshr.ts';
import { XenHypervisor } from '../../src/xen/hypervisor.ts';

describe('calls of the hypervisor that fail', () => {
  test('name the call, the domain, the reference and the errno', () => {
    const error = new HypervisorError('xengntshr_share_pages', 'ENOSPC', { domid: 3, what: '7 pages' }, 'Raise it.');
    assert.equal(error.message, 'xengntshr_share_pages 7 pages domain 3: ENOSPC. Raise it.');
    assert.deepEqual(
      [error.code, error.call, error.errno, error.domid],
      ['hypervisor-call', 'xengntshr_share_pages', 'ENOSPC', 3],
    );
    const one = new HypervisorError('c', 'EINVAL', { domid: 3, reference: 9 });
    assert.equal(one.message, 'c domain 3 reference 9: EINVAL');
    assert.equal(one.reference, 9);
    const several = new HypervisorError('c', 'EINVAL', { domid: 3, reference: 9, count: 2 });
    assert.equal(several.message, 'c domain 3 2 references from 9: EINVAL');
  });

  test('what cannot be opened says what is missing and what to do', () => {
    const poller = new LoopPoller();
    const xen = new XenHypervisor(poller);
    const opens: Readonly<Record<string, () => Closable>> = {
      '/dev/xen/gntdev': () => xen.openGrantMapper(),
      '/dev/xen/gntalloc': () => xen.openGrantSharer(),
      '/dev/xen/evtchn': () => xen.openEventChannels(),
      '/dev/xen/xenbus': () => xen.openXenstore(),
      '/dev/xen/privcmd': () => xen.openForeignMemory(),
    };
    for (const [node, open] of Object.entries(opens)) {
      if (existsSync(node)) {
        open().close();
        continue;
      }
      assert.throws(open, (error) => {
        assert.ok(error instanceof HypervisorError);
        assert.deepEqual([error.code, error.errno], ['hypervisor-call', 'ENOENT']);
        assert.match(error.message, /(libxen\w+\.so\.\S+|\/dev\/xen\/\w+|xenstored): ENOENT\. (Install|Is this)/);
        return true;
      });
    }
    assert.equal(gntallocLimitPages() !== undefined, existsSync('/sys/module/xen_gntalloc/parameters/limit'));
    poller.close();
  });
});
