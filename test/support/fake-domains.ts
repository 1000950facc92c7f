import type { DomainSource, DomainView, RunningDomain } from '../../src/bridge/service/domains.ts';
import { VmsgError } from '../../src/kit/errors.ts';

/** Xen domains that a test makes come and go. */
export class FakeDomains implements DomainSource {
  /** Why Xen cannot be reached; undefined: it can. */
  missing: string | undefined;
  /** Backend directories, as `domid/index`. */
  readonly backends = new Set<string>();
  opened = 0;
  closed = 0;
  #domains: readonly RunningDomain[] = [];
  #onChange: () => void = () => {};

  open(onChange: () => void): DomainView {
    if (this.missing !== undefined) throw new VmsgError('unavailable', this.missing);
    this.opened += 1;
    this.#onChange = onChange;
    return {
      domains: () => this.#domains,
      sweep: (keep) => {
        for (const backend of this.backends) {
          const [domid, index] = backend.split('/').map(Number);
          if (!keep(domid!, index!)) this.backends.delete(backend);
        }
      },
      close: () => {
        this.closed += 1;
        this.#onChange = () => {};
      },
    };
  }

  /** Domains that were to be destroyed; one that is in `protectedDomids` is not. */
  readonly destroyed: number[] = [];
  readonly protectedDomids = new Set<number>();

  async destroy(domid: number): Promise<void> {
    this.destroyed.push(domid);
    if (this.protectedDomids.has(domid)) throw new VmsgError('system-call', `xl destroy ${domid}: no such domain`);
    this.run(...this.#domains.filter((domain) => domain.domid !== domid));
  }

  /** These domains run now. */
  run(...domains: readonly RunningDomain[]): void {
    this.#domains = domains;
    this.#onChange();
  }
}
