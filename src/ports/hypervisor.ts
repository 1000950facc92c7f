import type { Closable } from '../kit/scope.ts';
import type { Access } from './memory.ts';

declare const kind: unique symbol;
type Branded<K extends string> = number & { readonly [kind]: K };

/** Number of a domain while it runs, 0..0x7fef. */
export type Domid = Branded<'domid'>;
/** Entry of a domain's grant table; 0..7 are Xen's own, so 0 never names a granted page. */
export type GrantRef = Branded<'grant reference'>;
/** Event channel port of one domain; 0 is never valid. */
export type EventPort = Branded<'event channel port'>;

/** The first number that Xen keeps for special domains (public/xen.h, DOMID_FIRST_RESERVED). */
const domidEnd = 0x7ff0;
const isIn = (value: number, from: number, to: number): boolean =>
  Number.isInteger(value) && value >= from && value <= to;

/** @returns undefined for what is no domain number. These three check numbers that come from elsewhere. */
export const asDomid = (value: number): Domid | undefined =>
  isIn(value, 0, domidEnd - 1) ? (value as Domid) : undefined;
export const asGrantRef = (value: number): GrantRef | undefined =>
  isIn(value, 1, 0xffff_ffff) ? (value as GrantRef) : undefined;
export const asEventPort = (value: number): EventPort | undefined =>
  isIn(value, 1, 0xffff_ffff) ? (value as EventPort) : undefined;

/** Bytes that one grant reference stands for, whatever the page size of the kernel. */
export const grantPageBytes = 4096;

/** A call of the hypervisor failed because of what a guest had claimed; a value, never thrown. */
export class HypervisorFault {
  readonly call: string;
  /** For example 'EINVAL'. */
  readonly errno: string;
  readonly domid: Domid;
  /** Grant references or ports concerned: the first, and how many. */
  readonly first: number;
  readonly count: number;

  constructor(call: string, errno: string, domid: Domid, first: number, count: number) {
    this.call = call;
    this.errno = errno;
    this.domid = domid;
    this.first = first;
    this.count = count;
  }
}

/** What the kernel does for us when a mapping or a share ends, also when this process is killed. */
export interface EndNotice {
  /** Byte of the first page that is set to 0. */
  readonly byte: number;
  /** Local port on which the other side gets an event. */
  readonly port: EventPort;
}

/** Pages of another domain in our address space. `bytes` is empty after `close`. */
export interface GrantMapping extends Closable {
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Pages of another domain, for another process: it maps all of them at once, from `offset` on in `fd`, and only once. */
export interface HandedPages extends Closable {
  readonly fd: number;
  /** Bytes. */
  readonly offset: bigint;
}

/** Maps what other domains grant (gntdev). */
export interface GrantMapper extends Closable {
  /**
   * Maps pages side by side, all or none. Access 'read' maps read-only: a store ends the process.
   * @param references at least one, at most `limits.grantMapMaxPages`; checked by nobody, they are the guest's word
   * @param notice only with one reference
   */
  map(domid: Domid, references: Uint32Array, access: Access, notice?: EndNotice): GrantMapping | HypervisorFault;
  /**
   * Opens a descriptor through which another process maps pages, which knows nothing of Xen and may write them. They
   * stay mapped until every copy of the descriptor is closed, and what is mapped through it is unmapped. Bad
   * references may show only when they are mapped.
   * @param references as for `map`
   */
  handOver(domid: Domid, references: Uint32Array): HandedPages | HypervisorFault;
}

/** Pages of ours that another domain may map. */
export interface SharedPages extends Closable {
  /** Zeroed at first. Empty after `close`; pages that are still mapped then live on in the kernel until they are not. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** One for each page, ascending, not consecutive by promise. */
  readonly references: Uint32Array;
}

/** Grants pages of our own (gntalloc). */
export interface GrantSharer extends Closable {
  /** @param notice concerns the first page. @throws HypervisorError, for example ENOSPC at the kernel's `limit` */
  share(domid: Domid, pages: number, notice?: EndNotice): SharedPages;
}

/** One end of an interdomain event channel. Events are edges: any number of them is one until it was taken. */
export interface EventChannel extends Closable {
  readonly port: EventPort;
  /** Never blocks; a peer that is gone is no error. */
  notify(): void;
}

/** Event channels of one thread, behind one descriptor. A listener runs on the event loop, never from within a call. */
export interface EventChannels extends Closable {
  /** Makes a port that `remote` may bind; it stays usable when the remote end comes and goes. @throws HypervisorError */
  bindUnbound(remote: Domid, onEvent: () => void): EventChannel;
  /** Binds to a port of another domain. The first event may be spurious. */
  bindInterdomain(remote: Domid, remotePort: EventPort, onEvent: () => void): EventChannel | HypervisorFault;
}

/** Who may do what with a node: `none` for others; the first entry names the owner. */
export interface XenstorePermission {
  readonly domid: Domid;
  readonly access: 'none' | 'read' | 'write' | 'both';
}

/** Calls that can be part of a transaction. Paths are absolute, or relative to the own domain's directory. */
export interface XenstoreAccess {
  /** @returns undefined when the node does not exist, or may not be read */
  read(path: string): string | undefined;
  /** Creates the node and those above it where needed. @throws HypervisorError */
  write(path: string, value: string): void;
  /** Names below a node; undefined when it does not exist. */
  directory(path: string): string[] | undefined;
  /** Removes a node and everything below it; one that does not exist is no error. @throws HypervisorError */
  remove(path: string): void;
  /** @throws HypervisorError */
  setPermissions(path: string, permissions: readonly XenstorePermission[]): void;
  /** @returns undefined when the node does not exist */
  permissions(path: string): XenstorePermission[] | undefined;
}

/** A connection to xenstored. Calls wait for its answer. */
export interface Xenstore extends XenstoreAccess, Closable {
  /**
   * Runs `body` in a transaction, again when others interfered, at most `limits.xenstoreTransactionTries` times.
   * What `body` throws aborts it. @throws HypervisorError EAGAIN
   */
  transaction<T>(body: (access: XenstoreAccess) => T): T;
  /**
   * Calls back for a node and those below, or for `@introduceDomain` and `@releaseDomain`; once right away as well,
   * and spuriously. Runs on the event loop, never from within a call.
   */
  watch(path: string, onChange: (path: string) => void): Closable;
  /** Whether the domain is there and was not released: a dying domain is not. */
  isIntroduced(domid: Domid): boolean;
}

/** Everything of the hypervisor that one thread uses; each call opens anew, the caller closes. */
export interface Hypervisor {
  /** @throws HypervisorError when the device node or xenstored is not there */
  openGrantMapper(): GrantMapper;
  openGrantSharer(): GrantSharer;
  openEventChannels(): EventChannels;
  openXenstore(): Xenstore;
}
