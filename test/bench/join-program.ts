import { openDataPlane } from '../../src/app/lane-data-plane.ts';
import { assert } from '../../src/kit/assert.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { HypervisorFault } from '../../src/ports/hypervisor.ts';
import { XenHypervisor } from '../../src/xen/hypervisor.ts';

/**
 * What c/join.c does, by the data plane of the bridge: one thread. SPIN-US; the same descriptors. SIGUSR2 prints what
 * the thread has counted. Ends with its input.
 */
const [guestKick, guestCall, programKick, programCall] = [3, 4, 5, 6];
const poller = new LoopPoller();
const settings = { dataPlaneWorkers: 1, dataPlaneSpinUs: Number(process.argv[2]) };
const plane = openDataPlane(settings, poller, new XenHypervisor(poller));
const join = await plane.join(
  {
    kick: { from: { eventfd: guestKick }, to: programKick },
    call: { from: programCall, to: { eventfd: guestCall } },
  },
  (reason) => {
    throw new Error(reason);
  },
);
assert(!(join instanceof HypervisorFault), 'there are no ports here');
process.on('SIGUSR2', () => console.error(plane.snapshot()));
process.stdin.on('end', () => process.exit(0)).resume();
console.log('ready');
