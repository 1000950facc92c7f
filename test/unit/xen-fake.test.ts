import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { asDomid, type Domid } from '../../src/ports/hypervisor.ts';
import { FakeXen, type FakeXenOptions } from '../support/fake-xen.ts';
import { granted, refused, settle, until } from '../support/hypervisor-bench.ts';

const dom0 = asDomid(0)!;
const nothing = { mappings: 0, shares: 0, channels: 0, watches: 0 };

async function withXen(
  run: (xen: FakeXen, vm1: Domid, vm2: Domid) => Promise<void> | void,
  options: FakeXenOptions = {},
): Promise<void> {
  const xen = new FakeXen(options);
  try {
    await run(xen, xen.createDomain('vm1'), xen.createDomain('vm2'));
  } finally {
    xen.close();
  }
}

/** What the in-memory machine does beyond one port of one process: several domains, and how they end. */
describe('machine in memory', () => {
  test('guests reach each other, unless SILO keeps them apart', async () => {
    await withXen((xen, vm1, vm2) => {
      const [one, two] = [xen.hypervisorFor(vm1), xen.hypervisorFor(vm2)];
      const page = one.openGrantSharer().share(vm2, 1);
      const { port } = one.openEventChannels().bindUnbound(vm2, () => {});
      granted(two.openGrantMapper().map(vm1, page.references, 'write')).bytes[0] = 1;
      assert.equal(page.bytes[0], 1);
      granted(two.openEventChannels().bindInterdomain(vm1, port, () => {}));
    });
    await withXen(
      (xen, vm1, vm2) => {
        const [one, two, service] = [vm1, vm2, dom0].map((domid) => xen.hypervisorFor(domid));
        const page = one!.openGrantSharer().share(vm2, 1);
        assert.equal(refused(two!.openGrantMapper().map(vm1, page.references, 'write')).errno, 'EINVAL');
        assert.throws(() => one!.openEventChannels().bindUnbound(vm2, () => {}), { errno: 'EPERM' });
        const { port } = one!.openEventChannels().bindUnbound(dom0, () => {});
        assert.equal(refused(two!.openEventChannels().bindInterdomain(vm1, port, () => {})).errno, 'EINVAL');
        granted(service!.openEventChannels().bindInterdomain(vm1, port, () => {}));
      },
      { silo: true },
    );
  });

  test('grants and ports are for the domain that they name', () =>
    withXen((xen, vm1, vm2) => {
      const [one, two] = [xen.hypervisorFor(vm1), xen.hypervisorFor(vm2)];
      const page = one.openGrantSharer().share(dom0, 1);
      const { port } = one.openEventChannels().bindUnbound(dom0, () => {});
      assert.equal(refused(two.openGrantMapper().map(vm1, page.references, 'read')).errno, 'EINVAL');
      assert.equal(refused(two.openEventChannels().bindInterdomain(vm1, port, () => {})).errno, 'EINVAL');
    }));

  test('what a kernel driver grants read-only cannot be mapped for writing', () =>
    withXen((xen, vm1) => {
      const page = xen.hypervisorFor(vm1).openGrantSharer().share(dom0, 1, undefined, true);
      const mapper = xen.hypervisorFor(dom0).openGrantMapper();
      assert.equal(refused(mapper.map(vm1, page.references, 'write')).errno, 'EINVAL');
      assert.equal(granted(mapper.map(vm1, page.references, 'read')).bytes[0], 0);
    }));

  test('a killed process leaves nothing, and every notice is given', () =>
    withXen(async (xen, vm1) => {
      let events = 0;
      const [guest, service] = [xen.hypervisorFor(vm1), xen.hypervisorFor(dom0)];
      const page = guest.openGrantSharer().share(dom0, 1);
      const { port } = guest.openEventChannels().bindUnbound(dom0, () => events++);
      const channel = granted(service.openEventChannels().bindInterdomain(vm1, port, () => {}));
      const notice = { byte: 3, port: channel.port };
      const mapping = granted(service.openGrantMapper().map(vm1, page.references, 'write', notice));
      const store = service.openXenstore();
      store.watch('/local', () => {});
      page.bytes[3] = 1;
      assert.deepEqual(service.census(), { mappings: 1, shares: 0, channels: 1, watches: 1 });
      service.kill();
      assert.deepEqual([service.census(), page.bytes[3], mapping.bytes.length], [nothing, 0, 0]);
      await until('the event', () => events > 0);
      assert.throws(() => store.write('/a', ''), { errno: 'EBADF' });
      assert.deepEqual(xen.census(), { mappings: 0, shares: 1, channels: 1, watches: 0 });
    }));

  test('a destroyed domain: mappings stay, no notice, its nodes go and those of the service stay', () =>
    withXen(async (xen, vm1) => {
      const [guest, service] = [xen.hypervisorFor(vm1), xen.hypervisorFor(dom0)];
      let events = 0;
      const released: boolean[] = [];
      const theirs = guest.openEventChannels();
      const { port } = theirs.bindUnbound(dom0, () => {});
      const page = guest.openGrantSharer().share(dom0, 1, { byte: 3, port });
      page.bytes[3] = 9;
      const mapper = service.openGrantMapper();
      const mapping = granted(mapper.map(vm1, page.references, 'write'));
      const channels = service.openEventChannels();
      const channel = granted(channels.bindInterdomain(vm1, port, () => events++));
      const store = service.openXenstore();
      const frontend = `/local/domain/${vm1}/device/vmsg/0`;
      const backend = `/local/domain/0/backend/vmsg/${vm1}/0`;
      for (const path of [frontend, backend]) store.write(`${path}/state`, '4');
      store.watch('@releaseDomain', () => released.push(store.isIntroduced(vm1)));
      await settle();
      events = 0;
      released.length = 0;
      xen.destroy(vm1);
      await until('its release', () => released.length > 0);
      assert.deepEqual([released, events, mapping.bytes[3], page.bytes.length], [[false], 0, 9, 0]);
      assert.deepEqual([store.read(`${frontend}/state`), store.read(`${backend}/state`)], [undefined, '4']);
      assert.equal(store.directory(`/local/domain/${vm1}`), undefined);
      channel.notify();
      mapping.bytes[3] = 8;
      mapping.close();
      assert.equal(refused(mapper.map(vm1, Uint32Array.of(8), 'write')).errno, 'EINVAL');
      assert.equal(refused(channels.bindInterdomain(vm1, port, () => {})).errno, 'EINVAL');
    }));

  test('a paused domain gets its events when it goes on', () =>
    withXen(async (xen, vm1) => {
      const [guest, service] = [xen.hypervisorFor(vm1), xen.hypervisorFor(dom0)];
      let [events, changes] = [0, 0];
      const { port } = guest.openEventChannels().bindUnbound(dom0, () => events++);
      const channel = granted(service.openEventChannels().bindInterdomain(vm1, port, () => {}));
      guest.openXenstore().watch('data', () => changes++);
      await settle();
      [events, changes] = [0, 0];
      xen.pause(vm1);
      channel.notify();
      service.openXenstore().write(`/local/domain/${vm1}/data/x`, '1');
      await settle();
      assert.deepEqual([events, changes], [0, 0]);
      xen.unpause(vm1);
      await until('both', () => events === 1 && changes === 1);
    }));

  test('a guest reads and writes only what xenstore allows it', () =>
    withXen((xen, vm1, vm2) => {
      const guest = xen.hypervisorFor(vm1).openXenstore();
      const other = xen.hypervisorFor(vm2).openXenstore();
      const service = xen.hypervisorFor(dom0).openXenstore();
      const home = `/local/domain/${vm1}`;
      assert.deepEqual([guest.read('name'), guest.read(`${home}/domid`)], ['vm1', String(vm1)]);
      assert.deepEqual([other.read(`${home}/name`), other.directory(home)], [undefined, undefined]);
      guest.write('data/mine', '1');
      assert.deepEqual(guest.permissions('data/mine'), [{ domid: vm1, access: 'none' }]);
      assert.equal(other.read(`${home}/data/mine`), undefined);
      assert.throws(() => guest.write('device/vmsg', '1'), { errno: 'EACCES' });
      assert.throws(() => guest.remove('name'), { errno: 'EACCES' });
      assert.throws(() => guest.setPermissions('name', [{ domid: vm1, access: 'both' }]), { errno: 'EACCES' });
      assert.throws(() => guest.watch('@releaseDomain', () => {}), { errno: 'EACCES' });
      service.write('/local/domain/0/backend/x', '1');
      assert.equal(guest.read('/local/domain/0/backend/x'), undefined);
      service.setPermissions('/local/domain/0/backend/x', [
        { domid: dom0, access: 'none' },
        { domid: vm1, access: 'read' },
      ]);
      assert.equal(guest.read('/local/domain/0/backend/x'), '1');
      assert.equal(other.read('/local/domain/0/backend/x'), undefined);
      assert.throws(() => guest.write('/local/domain/0/backend/x', '2'), { errno: 'EACCES' });
    }));
});
