import type { Clock } from '../../kit/clock.ts';
import type { Lane } from '../lane/protocol.ts';
import type { Store } from '../store.ts';
import type { DomainSource } from './domains.ts';
import type { ServiceLog } from './log.ts';
import type { ConfiguredObjects } from './merge.ts';
import type { ProgramSources } from './program-specs.ts';

/** What the service is made of. */
export interface ServiceOptions {
  readonly lane: Lane;
  readonly store: Store;
  readonly clock: Clock;
  /** Milliseconds since 1970, for the time of events. */
  readonly wallMs: () => number;
  readonly log: ServiceLog;
  /** Objects of the config file. */
  readonly configured: ConfiguredObjects;
  /** Directory of the bus sockets; exists. */
  readonly busDir: string;
  /** Directory of the recovery directories, one for each bus. */
  readonly recoveryDir: string;
  /** User that the service runs as: admitted to every bus that names nobody. */
  readonly uid: number;
  /** The Xen domains of this machine. */
  readonly xen: DomainSource;
  /** Programs that may be started as backends; without it none. */
  readonly programs?: ProgramSources;
  /** Ends a Xen domain at once. @throws VmsgError `system-call` */
  readonly destroyDomain: (domid: number) => Promise<void>;
}
