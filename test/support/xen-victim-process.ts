/** A process in a real domain that does what its parent says until it is killed. Speaks node's own messages. */
import { LoopPoller } from '../../src/libc/poll.ts';
import type { Domid } from '../../src/ports/hypervisor.ts';
import { XenHypervisor } from '../../src/xen/hypervisor.ts';
import { XenVictim } from './xen-victim.ts';

export type VictimCommand =
  | { readonly map: readonly [domid: Domid, reference: number, byte: number, remotePort: number] }
  | { readonly share: readonly [domid: Domid, byte: number] };

const victim = new XenVictim(new XenHypervisor(new LoopPoller()));
process.on('message', (command: VictimCommand) => {
  process.send?.('map' in command ? (victim.map(...command.map) ?? {}) : victim.share(...command.share));
});
