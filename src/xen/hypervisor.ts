import { assert } from '../kit/assert.ts';
import { detach } from '../libc/detach.ts';
import type { Poller } from '../libc/poll.ts';
import type { Hypervisor } from '../ports/hypervisor.ts';
import { XenEventChannels } from './evtchn.ts';
import { ForeignMemory } from './foreignmemory.ts';
import { XenGrantSharer } from './gntshr.ts';
import { XenGrantMapper } from './gnttab.ts';
import { XenLibraries } from './native.ts';
import { XenXenstore } from './xenstore.ts';
import { type XenControl, XenInterface } from './xsm.ts';

/** Xen as a domain's user space reaches it: device nodes, xenstored and the Xen libraries. */
export class XenHypervisor implements Hypervisor {
  readonly #poller: Poller;
  readonly #libraries = new XenLibraries();

  /** @param poller outlives everything that is opened here */
  constructor(poller: Poller) {
    this.#poller = poller;
  }

  openGrantMapper(): XenGrantMapper {
    checkDetach();
    return new XenGrantMapper(this.#libraries.grants);
  }

  openGrantSharer(): XenGrantSharer {
    checkDetach();
    return new XenGrantSharer();
  }

  openEventChannels(): XenEventChannels {
    return new XenEventChannels(this.#libraries.events, this.#poller);
  }

  openXenstore(): XenXenstore {
    return new XenXenstore(this.#libraries.store, this.#poller);
  }

  /** Only in dom0. @throws HypervisorError */
  openForeignMemory(): ForeignMemory {
    checkDetach();
    return new ForeignMemory(this.#libraries.foreign);
  }

  /** Only in dom0. @throws HypervisorError */
  openControl(): XenControl {
    return new XenInterface(this.#libraries);
  }
}

/** Without it a view of unmapped pages would end the process: no supported version of Node lacks it. */
function checkDetach(): void {
  assert(detach(new ArrayBuffer(8)), 'this runtime can empty an ArrayBuffer');
}
