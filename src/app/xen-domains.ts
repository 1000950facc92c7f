import { sweepBackends } from '../bridge/bus/xen/directory.ts';
import type { DomainSource, DomainView } from '../bridge/service.ts';
import { toErrorData, VmsgError } from '../kit/errors.ts';
import { Scope } from '../kit/scope.ts';
import type { Hypervisor } from '../ports/hypervisor.ts';
import { DomainWatcher } from '../xen/domains.ts';
import { ownDomid } from './lane-xen.ts';

/** The domains of this machine as xenstored knows them; nothing is opened before it is asked for. */
export class XenDomains implements DomainSource {
  readonly #hypervisor: Pick<Hypervisor, 'openXenstore'>;

  constructor(hypervisor: Pick<Hypervisor, 'openXenstore'>) {
    this.#hypervisor = hypervisor;
  }

  open(onChange: () => void): DomainView {
    const scope = new Scope();
    try {
      const xenstore = scope.own(this.#hypervisor.openXenstore());
      const service = ownDomid(xenstore);
      let isOpen = false;
      const changed = (): void => {
        if (isOpen) onChange();
      };
      const watcher = scope.own(new DomainWatcher(xenstore, { appeared: changed, gone: changed }));
      watcher.start();
      isOpen = true;
      return {
        domains: () => watcher.domains,
        sweep: (keep) => void sweepBackends(xenstore, service, keep),
        close: () => scope.close(),
      };
    } catch (error) {
      scope.close();
      throw new VmsgError('unavailable', `no Xen on this machine: ${toErrorData(error).message}`, { cause: error });
    }
  }
}
