import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { fdLink } from '../../src/libc/fd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import type { Domid } from '../../src/ports/hypervisor.ts';
import { XenHypervisor } from '../../src/xen/hypervisor.ts';
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
