import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { whyNoRing } from '../../bridge/backend/ring-io.ts';
import { VmsgError } from '../../kit/errors.ts';
import { createEventfd } from '../../libc/eventfd.ts';
import { createMemfd } from '../../libc/memfd.ts';
import { LoopPoller } from '../../libc/poll.ts';
import { XenHypervisor } from '../../xen/hypervisor.ts';
import { XsmDetector } from '../../xen/xsm.ts';

/** The machine as the doctor looks at it; tests make their own. */
export interface Machine {
  readonly platform: string;
  readonly nodeVersion: string;
  readonly uid: number;
  /** @returns the text of a file, undefined when it cannot be read */
  read(path: string): string | undefined;
  /** @returns null when the file can be read and written, else for example 'ENOENT' */
  reach(path: string): string | null;
  /** @returns undefined when there is no such directory */
  directory(path: string): { readonly uid: number; readonly mode: number } | undefined;
  /** Tries a part of the machine. @throws what it says when it cannot be used */
  readonly probe: Readonly<Record<Part, () => void>>;
  /** The number of this domain, as xenstored says. @throws when it does not answer */
  ownDomid(): string | undefined;
  /** What is known of Xen's security module, and from where. @throws when this is not the control domain */
  securityModule(): { readonly mode: string; readonly reason: string };
}

export type Part = 'memfd' | 'eventfd' | 'io_uring' | 'event channels' | 'grant mapping' | 'grant sharing' | 'xenstore';

const probeBytes = 4096;

/** This machine. */
export function thisMachine(): Machine {
  const poller = new LoopPoller();
  const xen = new XenHypervisor(poller);
  const tried = (open: () => { close(): void }) => () => open().close();
  return {
    platform: process.platform,
    nodeVersion: process.versions.node,
    uid: process.getuid?.() ?? 0,
    read: (path) => attempt(() => readFileSync(path, 'utf8')),
    reach: (path) => {
      try {
        accessSync(path, constants.R_OK | constants.W_OK);
        return null;
      } catch (error) {
        return (error as NodeJS.ErrnoException).code ?? 'EIO';
      }
    },
    directory: (path) => attempt(() => statSync(path)),
    probe: {
      memfd: tried(() => createMemfd('vmsg-doctor', probeBytes)),
      eventfd: tried(() => createEventfd()),
      io_uring: () => {
        const why = whyNoRing();
        if (why !== null) throw new VmsgError('unavailable', why);
      },
      'event channels': tried(() => xen.openEventChannels()),
      'grant mapping': tried(() => xen.openGrantMapper()),
      'grant sharing': tried(() => xen.openGrantSharer()),
      xenstore: tried(() => xen.openXenstore()),
    },
    ownDomid: () => {
      const store = xen.openXenstore();
      try {
        return store.read('domid');
      } finally {
        store.close();
      }
    },
    securityModule: () => {
      const control = xen.openControl();
      try {
        return new XsmDetector(control).verdict();
      } finally {
        control.close();
      }
    },
  };
}

function attempt<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}
