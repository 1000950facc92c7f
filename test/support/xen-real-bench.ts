import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Closable } from '../../src/kit/scope.ts';
import { fdLink } from '../../src/libc/fd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import type { Domid, EventChannels, GrantMapper, GrantSharer, Xenstore } from '../../src/ports/hypervisor.ts';
import { backendsPath, frontendPath } from '../../src/virtio-msg/xen-bus.ts';
import { XenHypervisor } from '../../src/xen/hypervisor.ts';
import type { XenMachine, XenProcess } from './bus-xen-world.ts';
import type { HypervisorBench, HypervisorSide, Victim } from './hypervisor-bench.ts';
import type { VictimCommand } from './xen-victim-process.ts';

const program = fileURLToPath(new URL('./xen-victim-process.js', import.meta.url));

/** Both sides in this very domain, which may grant pages and bind event channels to itself. */
export function realBench(domid: Domid): HypervisorBench {
  const poller = new LoopPoller();
  const side = (): HypervisorSide => ({
    domid,
    hypervisor: new XenHypervisor(poller),
    victim: async () => new ChildVictim(),
  });
  return { guest: side(), service: side(), census, close: () => poller.close() };
}

/** Descriptors and mappings of Xen's devices that this process holds, and its connections to xenstored. */
function census(): { devices: number; mappings: number; sockets: number } {
  const links = readdirSync('/proc/self/fd').map((name) => fdLink(Number(name)) ?? '');
  const maps = readFileSync('/proc/self/maps', 'latin1').split('\n');
  return {
    devices: links.filter((link) => link.startsWith('/dev/xen/')).length,
    mappings: maps.filter((line) => line.includes('/dev/xen/')).length,
    sockets: links.filter((link) => link.startsWith('socket:')).length,
  };
}

/**
 * Both sides of a bus in this very domain and in this process. A process of the machine is what was opened through one
 * `RealProcess`.
 */
export class RealMachine implements XenMachine {
  readonly serviceDomid: Domid;
  readonly domid: Domid;
  readonly index: number;
  readonly #poller = new LoopPoller();

  /** @param index of a bus that nobody else uses; its nodes are removed at the end */
  constructor(domid: Domid, index: number) {
    this.serviceDomid = domid;
    this.domid = domid;
    this.index = index;
  }

  process(): XenProcess {
    return new RealProcess(new XenHypervisor(this.#poller));
  }

  held(): string {
    return JSON.stringify(census());
  }

  close(): void {
    const { domid, index } = this;
    const frontend = frontendPath(domid, index);
    const store = new XenHypervisor(this.#poller).openXenstore();
    try {
      store.remove(frontend);
      for (const path of [backendsPath(domid, domid), backendsPath(domid), dirname(frontend)]) {
        if (store.directory(path)?.length === 0) store.remove(path);
      }
    } finally {
      store.close();
      this.#poller.close();
    }
  }
}

/** What one process opens, so that it can end as it does in a kernel. */
class RealProcess implements XenProcess {
  readonly #xen: XenHypervisor;
  readonly #memory: Closable[] = [];
  readonly #others: Closable[] = [];

  constructor(xen: XenHypervisor) {
    this.#xen = xen;
  }

  openGrantMapper(): GrantMapper {
    return own(this.#memory, this.#xen.openGrantMapper());
  }

  openGrantSharer(): GrantSharer {
    return own(this.#memory, this.#xen.openGrantSharer());
  }

  openEventChannels(): EventChannels {
    return own(this.#others, this.#xen.openEventChannels());
  }

  openXenstore(): Xenstore {
    return own(this.#others, this.#xen.openXenstore());
  }

  kill(): void {
    // A kernel takes the memory first, with the notices of its end, then it closes the descriptors.
    for (const handle of [...this.#memory, ...this.#others]) handle.close();
  }
}

function own<T extends Closable>(handles: Closable[], handle: T): T {
  handles.push(handle);
  return handle;
}

class ChildVictim implements Victim {
  readonly #child: ChildProcess = fork(program);

  async map(...map: Parameters<Victim['map']>): Promise<void> {
    await this.#ask({ map });
  }

  async share(...share: Parameters<Victim['share']>): Promise<{ reference: number; port: number }> {
    return (await this.#ask({ share })) as { reference: number; port: number };
  }

  async kill(): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
  }

  async #ask(command: VictimCommand): Promise<unknown> {
    const answered = once(this.#child, 'message');
    this.#child.send(command);
    const [answer] = await Promise.race([
      answered,
      once(this.#child, 'exit').then(() => Promise.reject(new Error('the victim ended by itself'))),
    ]);
    return answer;
  }
}
