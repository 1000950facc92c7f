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

export interface Page<K extends Kind> {
  readonly items: readonly Resource<K>[];
  /** Id to go on after, else null. */
  readonly next: string | null;
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
  list<K extends Kind>(kind: K, page: { readonly limit: number; readonly after?: string }): Promise<Page<K>>;
  /** Resolves when the object is gone: a detach waits, bounded, for requests in flight. */
  delete(kind: Kind, id: string, condition?: Precondition): Promise<void>;
  /** Why the service is not ready, or null when it is. */
  readiness(): string | null;
}
