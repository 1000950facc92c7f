import { asDomid } from '../../../src/ports/hypervisor.ts';
import { busContract } from '../../contract/bus-contract.ts';
import { xenBus } from '../../support/bus-xen.ts';
import { RealMachine } from '../../support/xen-real-bench.ts';

const dom0 = asDomid(0)!;
/** Of a bus that no other test uses. */
const index = 77;

busContract(xenBus('Xen, dom0 with itself', () => new RealMachine(dom0, index)));
