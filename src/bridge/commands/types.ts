import type { DataPlaneSnapshot } from '../data-plane/protocol.ts';
import type { Channel, MessageRecord, Share } from './observations.ts';
import type { Kind, Kinds } from './schemas.ts';

/** What the service is asked to have, by the config file or by a client. */
export type DomainSpec = Kinds['domains']['spec'];
export type BusSpec = Kinds['buses']['spec'];
export type BackendSpec = Kinds['backends']['spec'];
export type AttachmentSpec = Kinds['attachments']['spec'];

/** What is there. Rebuilt at every start, never stored. */
export type DomainStatus = Kinds['domains']['status'];
export type BusStatus = Kinds['buses']['status'];
export type BackendStatus = Kinds['backends']['status'];
export type AttachmentStatus = Kinds['attachments']['status'];

export interface Resource<K extends Kind = Kind> {
  readonly id: string;
  readonly kind: K;
  readonly origin: 'config' | 'api';
  /** Changes with every change of the spec; the ETag. Never used twice for objects of the API. */
  readonly revision: number;
  readonly spec: Kinds[K]['spec'];
  readonly status: Kinds[K]['status'];
}

export interface PutResult<K extends Kind> {
  readonly outcome: 'created' | 'unchanged' | 'updated';
  readonly resource: Resource<K>;
}

export interface PageOf<T, Cursor = string> {
  readonly items: readonly T[];
  /** What to go on after, null on the last page. */
  readonly next: Cursor | null;
}

export type Page<K extends Kind> = PageOf<Resource<K>>;

export interface PageRequest<Cursor = string> {
  /** 1 to `limits.apiPageMaxItems`. */
  readonly limit: number;
  /** Only items after this one. */
  readonly after?: Cursor;
}

/** The revision the object must have, or that it must exist at all, or that it must not. */
export type Precondition = number | 'exists' | 'absent';

/**
 * Everything a controller (REST, command, a TEE later) can ask of the service. Each rejects with a `VmsgError`
 * of the registry. A resolved `put` is durable.
 */
export interface Commands {
  put<K extends Kind>(kind: K, id: string, spec: Kinds[K]['spec'], condition?: Precondition): Promise<PutResult<K>>;
  get<K extends Kind>(kind: K, id: string): Promise<Resource<K>>;
  /** Sorted by id. */
  list<K extends Kind>(kind: K, page: PageRequest): Promise<Page<K>>;
  /** Resolves when the object is gone: a detach waits, bounded, for requests in flight. */
  delete(kind: Kind, id: string, condition?: Precondition): Promise<void>;
  /** The message path of each bus, sorted by the id of the bus. */
  listChannels(page: PageRequest): Promise<PageOf<Channel>>;
  /** @param bus id of the bus */
  getChannel(bus: string): Promise<Channel>;
  /** Headers of the last messages of a bus, oldest first; those of the last guest when none is there. */
  listRecords(bus: string, page: PageRequest<number>): Promise<PageOf<MessageRecord, number>>;
  /** Memory that guests share now, sorted by id. */
  listShares(page: PageRequest): Promise<PageOf<Share>>;
  getShare(id: string): Promise<Share>;
  /** What passes notifications on between guests and programs; null without a lane. */
  dataPlane(): Promise<DataPlaneSnapshot | null>;
  /** Why the service is not ready, or null when it is. */
  readiness(): string | null;
}
