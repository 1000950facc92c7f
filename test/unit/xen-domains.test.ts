import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { DomainWatcher } from '../../src/xen/domains.ts';
import { FakeXen } from '../support/fake-xen.ts';
import { settle, until } from '../support/hypervisor-bench.ts';

const dom0 = asDomid(0)!;
const uuid = (digit: string): string => `${digit.repeat(8)}-1111-4111-8111-${digit.repeat(12)}`;

async function withWatcher(
  run: (bench: { xen: FakeXen; log: string[]; watcher: DomainWatcher }) => Promise<void>,
  { start = true } = {},
): Promise<void> {
  const xen = new FakeXen();
  const service = xen.hypervisorFor(dom0);
  const log: string[] = [];
  const watcher = new DomainWatcher(service.openXenstore(), {
    appeared: ({ domid, name }) => log.push(`+${domid} ${name}`),
    gone: ({ domid, name }) => log.push(`-${domid} ${name}`),
  });
  try {
    if (start) watcher.start();
    await run({ xen, log, watcher });
    watcher.close();
    assert.equal(service.census().watches, 0);
  } finally {
    xen.close();
  }
}

describe('domain watcher', () => {
  test('tells of domains that run already, that come and that go', () =>
    withWatcher(
      async ({ xen, log, watcher }) => {
        const first = xen.createDomain('vm1', uuid('a'));
        watcher.start();
        assert.deepEqual(log, ['+1 vm1']);
        const second = xen.createDomain('vm2', uuid('b'));
        await until('the second', () => log.length === 2);
        xen.destroy(first);
        await until('the end of the first', () => log.length === 3);
        assert.deepEqual(log.slice(1), ['+2 vm2', '-1 vm1']);
        assert.deepEqual(watcher.domains[0], { domid: second, name: 'vm2', uuid: uuid('b') });
        await settle();
        assert.equal(log.length, 3);
      },
      { start: false },
    ));

  test('a domain appears only once it is introduced', () =>
    withWatcher(async ({ xen, log }) => {
      const domid = xen.createDomain('vm1', uuid('a'), false);
      await settle();
      assert.equal(log.length, 0);
      xen.introduce(domid);
      await until('the domain', () => log.includes('+1 vm1'));
    }));

  test('a name, or a uuid, may be written after the introduction', () =>
    withWatcher(async ({ xen, log }) => {
      const dom0Store = xen.hypervisorFor(dom0).openXenstore();
      const domid = xen.createDomain('vm1', uuid('a'), false);
      const home = `/local/domain/${domid}`;
      dom0Store.remove(`${home}/name`);
      dom0Store.write(`${home}/vm`, 'nonsense');
      xen.introduce(domid);
      await settle();
      dom0Store.write(`${home}/name`, 'vm9');
      await settle();
      assert.equal(log.length, 0);
      dom0Store.write(`${home}/vm`, `/vm/${uuid('C')}`);
      await until('the domain', () => log.includes('+1 vm9'));
    }));

  test('a new name is another domain', () =>
    withWatcher(async ({ xen, log }) => {
      const domid = xen.createDomain('vm1--incoming', uuid('a'));
      await until('the domain', () => log.length === 1);
      xen.hypervisorFor(dom0).openXenstore().write(`/local/domain/${domid}/name`, 'vm1');
      await until('the change', () => log.length === 3);
      assert.deepEqual(log.slice(1), ['-1 vm1--incoming', '+1 vm1']);
    }));

  test('a listener may close the watcher', () =>
    withWatcher(async ({ xen }) => {
      const log: string[] = [];
      const watcher = new DomainWatcher(xen.hypervisorFor(dom0).openXenstore(), {
        appeared: ({ name }) => {
          log.push(name);
          watcher.close();
        },
        gone: ({ name }) => log.push(name),
      });
      xen.createDomain('vm1');
      watcher.start();
      await settle();
      assert.deepEqual(log, ['vm1']);
      assert.deepEqual(watcher.domains, []);
    }));
});
