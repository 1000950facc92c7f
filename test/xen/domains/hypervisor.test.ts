import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, test } from 'node:test';
import { Scope } from '../../../src/kit/scope.ts';
import { Mapping } from '../../../src/libc/mapping.ts';
import { LoopPoller } from '../../../src/libc/poll.ts';
import { asDomid, grantPageBytes, HypervisorFault } from '../../../src/ports/hypervisor.ts';
import { DomainWatcher } from '../../../src/xen/domains.ts';
import { XenHypervisor } from '../../../src/xen/hypervisor.ts';
import { XsmDetector } from '../../../src/xen/xsm.ts';
import { hypervisorContract } from '../../contract/hypervisor-contract.ts';
import { granted, until } from '../../support/hypervisor-bench.ts';
import { realBench } from '../../support/xen-real-bench.ts';
import { activeGrants, xl } from '../support/dom0.ts';
import { createDomain } from '../support/domains.ts';
import { eventually } from '../support/eventually.ts';

hypervisorContract({ name: 'Xen, dom0 with itself', make: () => realBench(asDomid(0)!) });

async function withXen(run: (xen: XenHypervisor, scope: Scope) => Promise<void> | void): Promise<void> {
  const scope = new Scope();
  try {
    await run(new XenHypervisor(scope.own(new LoopPoller())), scope);
  } finally {
    scope.close();
  }
}

describe('Xen as dom0 sees it', () => {
  test('the security module is found out, with and without the command line', () =>
    withXen(async (xen, scope) => {
      const control = scope.own(xen.openControl());
      assert.match(await xl('dmesg'), /Initialising XSM SILO mode/);
      assert.equal(new XsmDetector(control).verdict().mode, 'silo');
      const silent = { commandLine: () => '', buildConfig: () => control.buildConfig(), close: () => {} };
      // Debian builds Xen with SILO as the default.
      assert.equal(new XsmDetector(silent).verdict().mode, 'silo');
      assert.match(control.commandLine(), /dom0_mem=/);
    }));

  test('domains are told of: their start, another name, their end', () =>
    withXen(async (xen, scope) => {
      const log: string[] = [];
      const xenstore = scope.own(xen.openXenstore());
      const watcher = scope.own(
        new DomainWatcher(xenstore, {
          appeared: ({ name, uuid }) => log.push(`+${name} ${uuid}`),
          gone: ({ name }) => log.push(`-${name}`),
        }),
      );
      watcher.start();
      const uuid = '3e9ae6d6-55e1-4a4b-8c0c-6d0bb0a0a0a1';
      const domain = await createDomain('watched', { paused: true, config: [`uuid = "${uuid}"`] });
      try {
        await until('its start', () => log.includes(`+watched ${uuid}`));
        const domid = asDomid(domain.domid)!;
        assert.equal(xenstore.isIntroduced(domid), true);
        await xl('rename', 'watched', 'renamed');
        await until('its name', () => log.includes(`+renamed ${uuid}`));
        await xl('destroy', String(domid));
        await until('its end', () => log.includes('-renamed'));
        assert.deepEqual(log, [`+watched ${uuid}`, '-watched', `+renamed ${uuid}`, '-renamed']);
        assert.equal(xenstore.isIntroduced(domid), false);
      } finally {
        await domain.destroy();
      }
    }));

  test('memory that a guest did not grant can be looked at, by dom0', () =>
    withXen(async (xen, scope) => {
      const domain = await createDomain('looked-at', { paused: true });
      try {
        const domid = asDomid(domain.domid)!;
        const memory = scope.own(xen.openForeignMemory());
        const kernelFrame = 0x40000n;
        const pages = granted(memory.map(domid, [kernelFrame, kernelFrame + 1n]));
        assert.equal(pages.bytes.length, 8192);
        // The magic number in the header of an arm64 kernel.
        assert.equal(Buffer.from(pages.bytes.subarray(56, 60)).toString('latin1'), 'ARMd');
        pages.close();
        assert.equal(pages.bytes.length, 0);
        const fault = memory.map(domid, [kernelFrame, 0x10n]);
        assert.ok(fault instanceof HypervisorFault);
        assert.deepEqual([fault.call, fault.domid, fault.first], ['xenforeignmemory_map', domid, 0x10]);
      } finally {
        scope.close();
        await domain.destroy();
      }
    }));
});

describe('Pages that are handed over', () => {
  const pages = 3;
  const map = (fd: number, count: number): Mapping => Mapping.map(fd, 0, count * grantPageBytes, { writable: true });

  test('are mapped all at once, and only once', () =>
    withXen((xen, scope) => {
      const self = asDomid(0)!;
      const { references } = scope.own(scope.own(xen.openGrantSharer()).share(self, pages));
      const mapper = scope.own(xen.openGrantMapper());
      const handed = scope.own(granted(mapper.handOver(self, references)));
      assert.equal(handed.offset, 0n);
      for (const count of [pages - 1, pages + 1]) assert.throws(() => map(handed.fd, count), { errnoName: 'EINVAL' });
      const first = scope.own(map(handed.fd, pages));
      assert.throws(() => map(handed.fd, pages), { errnoName: 'EINVAL' });
      first.close();
      assert.throws(() => map(handed.fd, pages), { errnoName: 'EINVAL' });
    }));

  test('stay mapped until nothing maps them and the last copy of the descriptor is closed', () =>
    withXen(async (xen, scope) => {
      const self = asDomid(0)!;
      const { references } = scope.own(scope.own(xen.openGrantSharer()).share(self, pages));
      const mapper = scope.own(xen.openGrantMapper());
      const inUse = async (): Promise<number> => {
        const found = (await activeGrants()).get(self) ?? [];
        return found.filter(({ reference }) => references.includes(reference)).length;
      };
      const handed = scope.own(granted(mapper.handOver(self, references)));
      const holder = spawn('sleep', ['600'], { stdio: ['ignore', 'ignore', 'ignore', handed.fd] });
      try {
        const mapping = scope.own(map(handed.fd, pages));
        assert.equal(await inUse(), pages);
        handed.close();
        assert.equal(await inUse(), pages);
        mapping.close();
        assert.equal(await inUse(), pages, 'another process has the descriptor');
      } finally {
        holder.kill('SIGKILL');
        await once(holder, 'exit');
      }
      await eventually(async () => ((await inUse()) === 0 ? true : undefined), 'no page is mapped');
    }));
});
