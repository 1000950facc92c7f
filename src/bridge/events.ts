import type { Kind, PeerIdentity } from './commands.ts';

export type EventType =
  | 'object-created'
  | 'object-updated'
  | 'object-deleted'
  /** A stored object has the id of one in the config file, which wins; the stored one is kept, unused. */
  | 'object-hidden'
  /** Another Xen domain stands behind a domain object now, or none does. */
  | 'domain-appeared'
  | 'domain-gone'
  | 'bus-state'
  | 'bus-connected'
  | 'bus-disconnected'
  | 'bus-refused'
  /** The guest shares something that cannot be used. */
  | 'bus-diagnosis'
  | 'served-devices'
  /** A guest that serves devices keeps memory of another domain although it was told to give it back; or gave it. */
  | 'share-stuck'
  | 'share-released'
  | 'device-status'
  | 'attachment-state'
  | 'lane-failed';

/** What happened, for people and programs that watch; `id` rises by one. */
export interface ServiceEvent {
  readonly id: number;
  /** RFC 3339, UTC. */
  readonly time: string;
  readonly type: EventType;
  readonly kind: Kind | 'service';
  /** Id of the object concerned; empty for the service. */
  readonly object: string;
  readonly data: Readonly<Record<string, string | number | boolean | null | readonly string[] | PeerIdentity>>;
}

export interface Subscription {
  /** False when events after the wanted id are not kept any more. */
  readonly complete: boolean;
  close(): void;
}

/** Where watchers subscribe; delivery is synchronous, a listener must not throw and must not block. */
export interface EventSource {
  /** @param after first delivers, before it returns, the kept events with a higher id */
  subscribe(listener: (event: ServiceEvent) => void, after?: number): Subscription;
}
