import { limits } from '../../../kit/limits.ts';
import type { Admission, DevicePath } from '../../../ports/bus.ts';
import { asDomid, type Domid, type Xenstore, type XenstoreAccess } from '../../../ports/hypervisor.ts';
import {
  type backendDeviceNodes,
  type backendNodes,
  backendPath,
  backendsPath,
  type frontendNodes,
  frontendPath,
  xenBusVersion,
  xenbusState,
} from '../../../virtio-msg/xen-bus.ts';
import { parseU32, parseU64 } from './frontend.ts';

/** What every offer of a bus says. */
export interface BusTerms {
  readonly serviceDomid: Domid;
  readonly domid: Domid;
  readonly index: number;
  readonly role: 'driver' | 'device';
  readonly maxMessageSizeBytes: number;
  readonly poolMaxBytes: number;
  readonly revision: number;
  readonly dialect: number;
}

type BackendNode = keyof typeof backendNodes;
type BackendDeviceNode = keyof typeof backendDeviceNodes;
type FrontendNode = keyof typeof frontendNodes;

/** The two directories of one bus in xenstore, from the side of the service. Every call may throw a HypervisorError. */
export class BusDirectory {
  readonly frontend: string;
  readonly #backend: string;
  readonly #xenstore: Xenstore;
  readonly #terms: BusTerms;
  readonly #devices = new Map<number, DevicePath>();
  #published = false;
  #closed = true;

  constructor(xenstore: Xenstore, terms: BusTerms) {
    const { serviceDomid, domid, index } = terms;
    this.#xenstore = xenstore;
    this.#terms = terms;
    this.frontend = frontendPath(domid, index);
    this.#backend = backendPath(serviceDomid, domid, index);
  }

  read(node: FrontendNode): string | undefined {
    return this.#xenstore.read(`${this.frontend}/${node}`);
  }

  /** State of the guest; undefined when it is not there or no number. */
  frontendState(): number | undefined {
    return parseU32(this.read('state'));
  }

  frontendExists(): boolean {
    return this.#xenstore.read(this.frontend) !== undefined;
  }

  /** Last epoch that is known to xenstore from an earlier process. */
  lastEpoch(): bigint | undefined {
    return parseU64(this.#xenstore.read(`${this.#backend}/epoch`));
  }

  /** Lets a guest in, under a new epoch. */
  offer(epoch: bigint): void {
    this.#xenstore.transaction((access) => {
      if (!this.#published) this.#publish(access);
      for (const node of ['token', 'resumed'] as const) this.#remove(access, node);
      this.#write(access, 'epoch', epoch);
      this.#write(access, 'state', xenbusState.initWait);
    });
    this.#published = true;
    this.#closed = false;
  }

  /** All that stays the same, and the guest's directory where it is missing; nodes of the guest are left alone. */
  #publish(access: XenstoreAccess): void {
    const { serviceDomid, domid, role, maxMessageSizeBytes, poolMaxBytes, revision, dialect } = this.#terms;
    access.remove(this.#backend);
    access.write(this.#backend, '');
    access.setPermissions(this.#backend, [
      { domid: serviceDomid, access: 'none' },
      { domid, access: 'read' },
    ]);
    const nodes: readonly (readonly [BackendNode, string | number])[] = [
      ['frontend', this.frontend],
      ['frontend-id', domid],
      ['online', 1],
      ['version', xenBusVersion],
      ['role', role],
      ['dialects', dialect],
      ['revision', revision],
      ['transport-features', 0],
      ['max-message-size', maxMessageSizeBytes],
      ['max-ring-pages', limits.xenRingMaxPages],
      ['max-pool-bytes', poolMaxBytes],
      ['feature-sleep-words', 1],
      ['feature-queue-evtchn', 1],
      ['feature-persistent', 1],
    ];
    for (const [node, value] of nodes) this.#write(access, node, value);
    for (const [device, path] of this.#devices) this.#writeDevice(access, device, path);
    if (access.read(this.frontend) === undefined) {
      access.write(this.frontend, '');
      // What is made below belongs to the guest as well.
      access.setPermissions(this.frontend, [{ domid, access: 'none' }]);
      this.#writeFrontend(access, 'state', xenbusState.initialising);
    }
    this.#writeFrontend(access, 'backend', this.#backend);
    this.#writeFrontend(access, 'backend-id', serviceDomid);
  }

  #write(access: XenstoreAccess, node: BackendNode, value: string | number | bigint): void {
    access.write(`${this.#backend}/${node}`, String(value));
  }

  #writeFrontend(access: XenstoreAccess, node: FrontendNode, value: string | number): void {
    access.write(`${this.frontend}/${node}`, String(value));
  }

  #remove(access: XenstoreAccess, node: BackendNode): void {
    access.remove(`${this.#backend}/${node}`);
  }

  connected({ token, resumed }: Admission): void {
    this.#xenstore.transaction((access) => {
      this.#write(access, 'token', Buffer.from(token).toString('hex'));
      this.#write(access, 'resumed', resumed ? 1 : 0);
      this.#remove(access, 'error');
      this.#write(access, 'state', xenbusState.connected);
    });
  }

  /** The connection has ended, or never came about. @param error why, where the guest has to know */
  closed(error?: string): void {
    if (!this.#published || this.#closed) return;
    if (error !== undefined) {
      this.#xenstore.transaction((access) => {
        this.#write(access, 'error', error);
        this.#write(access, 'state', xenbusState.closing);
      });
    }
    this.#write(this.#xenstore, 'state', xenbusState.closed);
    this.#closed = true;
  }

  /** The directory of the guest went, with the domain or without: the next offer makes everything anew. */
  forget(): void {
    this.#published = false;
  }

  /** First of two steps: nobody may connect any more, and the guest of now hears of it. */
  leave(): void {
    if (!this.#published) return;
    this.#xenstore.transaction((access) => {
      this.#write(access, 'online', 0);
      this.#write(access, 'state', xenbusState.closing);
    });
  }

  remove(): void {
    if (this.#published) this.#write(this.#xenstore, 'state', xenbusState.closed);
    this.#published = false;
    removeBus(this.#xenstore, this.#terms.serviceDomid, this.#terms.domid, this.#terms.index);
  }

  publishDevice(device: number, path: DevicePath): void {
    if (this.#published) this.#xenstore.transaction((access) => this.#writeDevice(access, device, path));
    this.#devices.set(device, path);
  }

  #writeDevice(access: XenstoreAccess, device: number, { peerDomid, dataPath }: DevicePath): void {
    const nodes: Record<BackendDeviceNode, string> = { 'peer-domid': String(peerDomid), 'data-path': dataPath };
    for (const [node, value] of Object.entries(nodes)) access.write(`${this.#backend}/device/${device}/${node}`, value);
  }

  unpublishDevice(device: number): void {
    if (this.#devices.delete(device) && this.#published) this.#xenstore.remove(`${this.#backend}/device/${device}`);
  }
}

function removeBus(access: XenstoreAccess, service: Domid, domid: Domid, index: number): void {
  access.remove(backendPath(service, domid, index));
  access.remove(frontendPath(domid, index));
  if (access.directory(backendsPath(service, domid))?.length === 0) access.remove(backendsPath(service, domid));
}

/**
 * Removes the directories of buses that are not wanted any more: an earlier process may have left them, and the
 * toolstack does not know them.
 * @returns how many buses were removed
 * @throws HypervisorError
 */
export function sweepBackends(
  xenstore: XenstoreAccess,
  service: Domid,
  keep: (domid: Domid, index: number) => boolean,
): number {
  const root = backendsPath(service);
  let removed = 0;
  for (const domidName of xenstore.directory(root) ?? []) {
    const domid = asDomid(parseU32(domidName) ?? -1);
    // Only services write here; what none of them would write is garbage.
    if (domid === undefined) {
      xenstore.remove(`${root}/${domidName}`);
      continue;
    }
    const buses = xenstore.directory(`${root}/${domidName}`) ?? [];
    if (buses.length === 0) xenstore.remove(`${root}/${domidName}`);
    for (const indexName of buses) {
      const index = parseU32(indexName);
      if (index !== undefined && keep(domid, index)) continue;
      removed += 1;
      if (index === undefined) xenstore.remove(`${root}/${domidName}/${indexName}`);
      else removeBus(xenstore, service, domid, index);
    }
  }
  return removed;
}
