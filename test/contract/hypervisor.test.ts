import { asDomid } from '../../src/ports/hypervisor.ts';
import { FakeXen } from '../support/fake-xen.ts';
import type { HypervisorSide } from '../support/hypervisor-bench.ts';
import { XenVictim } from '../support/xen-victim.ts';
import { hypervisorContract } from './hypervisor-contract.ts';

for (const scatteredReferences of [false, true]) {
  hypervisorContract({
    name: `in memory, ${scatteredReferences ? 'scattered' : 'consecutive'} references`,
    make: () => {
      const xen = new FakeXen({ scatteredReferences });
      const sideOf = (domid: HypervisorSide['domid']): HypervisorSide => ({
        domid,
        hypervisor: xen.hypervisorFor(domid),
        victim: async () => {
          const process = xen.hypervisorFor(domid);
          const victim = new XenVictim(process);
          return {
            map: async (...parameters) => victim.map(...parameters),
            share: async (...parameters) => victim.share(...parameters),
            kill: async () => process.kill(),
          };
        },
      });
      return {
        guest: sideOf(xen.createDomain('vm1')),
        service: sideOf(asDomid(0)!),
        census: () => xen.census(),
        close: () => xen.close(),
      };
    },
  });
}
