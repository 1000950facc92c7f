import { loopbackBus } from '../support/bus-loopback.ts';
import { xenBus } from '../support/bus-xen.ts';
import { FakeMachine } from '../support/xen-world.ts';
import { busContract } from './bus-contract.ts';

busContract(loopbackBus);
for (const scatteredReferences of [false, true]) {
  const references = scatteredReferences ? 'scattered' : 'consecutive';
  busContract(xenBus(`Xen in memory, ${references} references`, () => new FakeMachine({ scatteredReferences })));
}
