import type { Clock } from '../kit/clock.ts';
import { type ErrnoName, wireErrno } from '../kit/errno.ts';
import { limits } from '../kit/limits.ts';
import type { Pace } from '../kit/pace.ts';
import type { CallTarget, GrantSpace, GuestMemory, GuestPort, GuestResources, HandedMemory } from '../ports/bus.ts';
import {
  asDomid,
  asEventPort,
  asGrantRef,
  type Domid,
  type EventChannel,
  type EventChannels,
  type GrantMapper,
  grantPageBytes,
  HypervisorFault,
} from '../ports/hypervisor.ts';
import { directoryPages, readDirectoryPage } from '../virtio-msg/grant-directory.ts';
import { explainMapFault } from './grant-fault.ts';
import { MappedGrants } from './grant-space.ts';

export interface XenResourcesOptions {
  readonly mapper: GrantMapper;
  readonly channels: EventChannels;
  /** The other side: the guest, or for a guest that serves devices its service. */
  readonly domid: Domid;
  /** Most bytes of all regions together. */
  readonly poolMaxBytes: number;
  /** feature-persistent was agreed. */
  readonly persistent: boolean;
  readonly clock: Clock;
  /**
   * Bounds what a guest has mapped and bound in a time, over all its connections: the kernel does it while others
   * wait. Without it there is no bound.
   */
  readonly work?: Pace;
  /** Gets a sentence for each thing that the other side has named and that cannot be used. */
  readonly diagnosed: (text: string) => void;
}

/** One event channel of the other side, for the kicks and calls of any number of queues. */
interface SharedPort {
  readonly channel: EventChannel;
  readonly kicks: Set<() => void>;
  users: number;
}

/** What a domain has handed over by name: pools, grants of single buffers, event channels of queues. All are untrusted. */
export class XenResources implements GuestResources {
  readonly grants: GrantSpace;
  readonly #o: XenResourcesOptions;
  readonly #ports = new Map<number, SharedPort>();
  #regionBytes = 0;
  /** Ports that others have bound. */
  #handedPorts = 0;
  #closed = false;

  constructor(options: XenResourcesOptions) {
    this.#o = options;
    const { mapper, domid, persistent, clock, diagnosed } = options;
    this.grants = new MappedGrants({ mapper, domid, persistent, clock, diagnosed });
  }

  /** Maps a pool: the reference names the first page of its directory. */
  openRegion(
    reference: number,
    offset: bigint,
    length: bigint,
    readOnly: boolean,
    domain: number,
  ): GuestMemory | ErrnoName {
    const domid = domain === 0 ? this.#o.domid : asDomid(domain);
    const page = BigInt(grantPageBytes);
    if (this.#closed || domid === undefined || offset !== 0n || length < page || length % page !== 0n) return 'EINVAL';
    const { poolMaxBytes } = this.#o;
    const pages = Number(length / page);
    if (length > BigInt(poolMaxBytes - this.#regionBytes) || pages > limits.grantMapMaxPages) {
      this.#o.diagnosed(
        `a pool of ${length} bytes beside ${this.#regionBytes} bytes that are shared: the bus allows ${poolMaxBytes}`,
      );
      return 'ENOSPC';
    }
    if (this.#isTooMuch(1 + Math.ceil(pages / limits.xenWorkPages))) return 'EBUSY';
    const references = this.#readDirectory(domid, reference, pages);
    return typeof references === 'string' ? references : this.#mapRegion(domid, reference, references, readOnly);
  }

  #isTooMuch(work: number): boolean {
    const waitMs = this.#o.work?.take(work) ?? 0;
    if (waitMs > 0) this.#o.diagnosed('pools and event channels are named faster than they can be mapped and bound');
    return waitMs > 0;
  }

  #mapRegion(domid: Domid, reference: number, references: Uint32Array, readOnly: boolean): GuestMemory | ErrnoName {
    const { mapper } = this.#o;
    const access = readOnly ? 'read' : 'write';
    const mapping = mapper.map(domid, references, access);
    if (mapping instanceof HypervisorFault) {
      this.#o.diagnosed(`a pool cannot be mapped: ${explainMapFault(mapper, mapping, references, access)}`);
      return wireErrno(mapping.errno);
    }
    const { bytes } = mapping;
    const size = bytes.length;
    this.#regionBytes += size;
    let open = true;
    return {
      bytes,
      source: { domid, reference },
      ...(readOnly ? {} : { handle: () => ({ open: () => this.#handOver(domid, references), close() {} }) }),
      close: () => {
        if (!open) return;
        open = false;
        this.#regionBytes -= size;
        mapping.close();
      },
    };
  }

  #handOver(domid: Domid, references: Uint32Array): HandedMemory | ErrnoName {
    const handed = this.#o.mapper.handOver(domid, references);
    return handed instanceof HypervisorFault ? wireErrno(handed.errno) : handed;
  }

  /** Copies the references of a pool, each directory page once; as many pages as the length of the pool needs. */
  #readDirectory(domid: Domid, first: number, pages: number): Uint32Array | ErrnoName {
    const references = new Uint32Array(pages);
    const count = directoryPages(pages);
    let next = first;
    for (let page = 0; page < count; page++) {
      if (asGrantRef(next) === undefined) {
        this.#o.diagnosed(`the directory of a pool of ${pages} pages has ${page} pages, ${count} are needed`);
        return 'EINVAL';
      }
      const own = Uint32Array.of(next);
      const mapping = this.#o.mapper.map(domid, own, 'read');
      if (mapping instanceof HypervisorFault) {
        const why = explainMapFault(this.#o.mapper, mapping, own, 'read');
        this.#o.diagnosed(`page ${page + 1} of the directory of a pool: ${why}`);
        return wireErrno(mapping.errno);
      }
      const { buffer, byteOffset } = mapping.bytes;
      next = readDirectoryPage(new Uint32Array(buffer, byteOffset, grantPageBytes / 4), references, page);
      mapping.close();
    }
    const missing = references.indexOf(0);
    if (missing < 0) return references;
    this.#o.diagnosed(`the directory of a pool of ${pages} pages has no reference for page ${missing + 1}`);
    return 'EINVAL';
  }

  openKick(reference: number, onKick: () => void): { close(): void } | ErrnoName {
    const port = this.#usePort(reference);
    if (typeof port === 'string') return port;
    // A listener of its own, so that the same function can be there twice.
    const listener = (): void => onKick();
    port.kicks.add(listener);
    return this.#user(reference, port, () => port.kicks.delete(listener));
  }

  openCall(reference: number): CallTarget | ErrnoName {
    const port = this.#usePort(reference);
    if (typeof port === 'string') return port;
    return { ...this.#user(reference, port, () => {}), ring: () => port.channel.notify() };
  }

  takePort = (reference: number): GuestPort | ErrnoName => {
    const port = asEventPort(reference);
    if (port === undefined || this.#closed) return 'EINVAL';
    if (this.#ports.size + this.#handedPorts >= limits.xenQueuePortsPerBus) return 'ENOSPC';
    if (this.#isTooMuch(1)) return 'EBUSY';
    this.#handedPorts += 1;
    let open = true;
    return {
      domid: this.#o.domid,
      port,
      refused: (fault) => this.#explain(reference, fault),
      close: () => {
        if (open) this.#handedPorts -= 1;
        open = false;
      },
    };
  };

  #explain(reference: number, { call, errno }: HypervisorFault): void {
    this.#o.diagnosed(
      `event channel port ${reference} of domain ${this.#o.domid} cannot be bound: ${call} gives ${errno}; check that it is unbound and made for the domain that binds it`,
    );
  }

  #user(reference: number, port: SharedPort, ended: () => void): { close(): void } {
    let open = true;
    return {
      close: () => {
        if (!open) return;
        open = false;
        ended();
        port.users -= 1;
        if (port.users > 0) return;
        if (this.#ports.get(reference) === port) this.#ports.delete(reference);
        port.channel.close();
      },
    };
  }

  /** Binds a port of the other side, once for all who use it. */
  #usePort(reference: number): SharedPort | ErrnoName {
    const known = this.#ports.get(reference);
    if (known !== undefined) {
      known.users += 1;
      return known;
    }
    const number = asEventPort(reference);
    if (number === undefined || this.#closed) return 'EINVAL';
    const { domid, channels } = this.#o;
    if (this.#ports.size + this.#handedPorts >= limits.xenQueuePortsPerBus) return 'ENOSPC';
    if (this.#isTooMuch(1)) return 'EBUSY';
    const kicks = new Set<() => void>();
    const channel = channels.bindInterdomain(domid, number, () => {
      for (const kick of kicks) kick();
    });
    if (channel instanceof HypervisorFault) {
      this.#explain(reference, channel);
      return wireErrno(channel.errno);
    }
    const port = { channel, kicks, users: 1 };
    this.#ports.set(reference, port);
    return port;
  }

  /** Memory of ours is not offered on Xen. */
  give(): ErrnoName {
    return 'EOPNOTSUPP';
  }

  /** References are no objects of ours: there is nothing to end. */
  discard(): void {}

  /** Takes nothing more. Regions, and grants in use, stay until their users let go. Idempotent. */
  close(): void {
    this.#closed = true;
    this.grants.close();
    for (const { channel } of this.#ports.values()) channel.close();
    this.#ports.clear();
  }
}
