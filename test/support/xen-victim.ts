import { asEventPort, type Domid, type EventChannels, type Hypervisor } from '../../src/ports/hypervisor.ts';
import { granted } from './hypervisor-bench.ts';

/** What a process does that is about to be killed; everything stays open. */
export class XenVictim {
  readonly #hypervisor: Hypervisor;
  readonly #events: EventChannels;

  constructor(hypervisor: Hypervisor) {
    this.#hypervisor = hypervisor;
    this.#events = hypervisor.openEventChannels();
  }

  map(domid: Domid, reference: number, byte: number, remotePort: number): void {
    const channel = granted(this.#events.bindInterdomain(domid, asEventPort(remotePort)!, () => {}));
    const mapper = this.#hypervisor.openGrantMapper();
    granted(mapper.map(domid, Uint32Array.of(reference), 'write', { byte, port: channel.port })).bytes[byte] = 1;
  }

  share(domid: Domid, byte: number): { reference: number; port: number } {
    const { port } = this.#events.bindUnbound(domid, () => {});
    const page = this.#hypervisor.openGrantSharer().share(domid, 1, { byte, port });
    page.bytes[byte] = 1;
    return { reference: page.references[0]!, port };
  }
}
