import type { Timer } from '../../kit/clock.ts';
import type { Kind, Kinds, Resource } from '../commands.ts';
import { kinds } from '../commands.ts';

/** Where a bus or an attachment stands in the lane; domains and backends stay `out`. */
export interface LanePresence {
  state: 'out' | 'entering' | 'in' | 'leaving';
  /** Why the last try to enter failed. */
  reason: string | null;
  /** Failed tries in a row. */
  tries: number;
  retry: Timer | null;
  /** What it needs comes by itself and is not there now: no timer runs. */
  waits: boolean;
  /** Of a bus that is in: guests are let in. */
  admits: boolean;
  /** Of a bus that is in: its domain, as it was opened for it. */
  domid: number | null;
  incarnation: string | null;
  /** Of an attachment that is in. */
  deviceNumber: number | null;
  /** The device needs a reset or cannot work. */
  degraded: boolean;
}

/** What is not in the lane waits, or has failed. */
export const stateOutside = ({ reason, waits }: LanePresence): 'pending' | 'failed' =>
  reason === null || waits ? 'pending' : 'failed';

interface EntryOf<K extends Kind> {
  readonly kind: K;
  readonly id: string;
  readonly origin: Resource['origin'];
  revision: number;
  spec: Kinds[K]['spec'];
  /** `creating`: reserved, not yet durable, seen by the rules and by nobody else. */
  phase: 'creating' | 'present' | 'deleting';
  readonly lane: LanePresence;
}

/** An object of the desired state together with what is known about it. */
export type Entry<K extends Kind = Kind> = { [P in K]: EntryOf<P> }[K];

export interface Reference {
  readonly field: string;
  readonly kind: Kind;
  readonly id: string;
}

const outOfLane = (): LanePresence => ({
  state: 'out',
  reason: null,
  tries: 0,
  retry: null,
  waits: false,
  admits: false,
  domid: null,
  incarnation: null,
  deviceNumber: null,
  degraded: false,
});

export function makeEntry<K extends Kind>(
  of: Pick<EntryOf<K>, 'kind' | 'id' | 'origin' | 'revision' | 'spec' | 'phase'>,
): Entry {
  return { ...of, lane: outOfLane() } as EntryOf<K> as Entry;
}

/** The objects that a spec names. */
export function referencesOf(kind: Kind, spec: Kinds[Kind]['spec']): readonly Reference[] {
  const fields = {
    domains: {},
    buses: { domain: 'domains' },
    backends: 'type' in spec && spec.type === 'guest' ? { bus: 'buses' } : {},
    attachments: { bus: 'buses', backend: 'backends' },
  };
  return Object.entries<string>(fields[kind]).map(([field, target]) => ({
    field,
    kind: target as Kind,
    id: (spec as unknown as Record<string, string>)[field]!,
  }));
}

const keyOf = (kind: Kind, id: string): string => `${kind}/${id}`;

/** All objects, and who refers to whom. */
export class Inventory {
  readonly #entries: { readonly [K in Kind]: Map<string, Entry<K>> } = {
    domains: new Map(),
    buses: new Map(),
    backends: new Map(),
    attachments: new Map(),
  };
  /** Also holds references to objects that do not exist. */
  readonly #users = new Map<string, Set<Entry>>();

  get<K extends Kind>(kind: K, id: string): Entry<K> | undefined {
    return this.#entries[kind].get(id);
  }

  all<K extends Kind>(kind: K): Iterable<Entry<K>> {
    return this.#entries[kind].values();
  }

  *everything(): Iterable<Entry> {
    for (const kind of kinds) yield* this.all(kind);
  }

  count(kind: Kind): number {
    return this.#entries[kind].size;
  }

  /** Who refers to an object, in the order they were added. */
  users(kind: Kind, id: string): readonly Entry[] {
    return [...(this.#users.get(keyOf(kind, id)) ?? [])];
  }

  attachmentsOf(kind: 'buses' | 'backends', id: string): readonly Entry<'attachments'>[] {
    return this.users(kind, id).filter((user) => user.kind === 'attachments');
  }

  add(entry: Entry): void {
    (this.#entries[entry.kind] as Map<string, Entry>).set(entry.id, entry);
    for (const { kind, id } of referencesOf(entry.kind, entry.spec)) {
      const key = keyOf(kind, id);
      const users = this.#users.get(key) ?? new Set();
      users.add(entry);
      this.#users.set(key, users);
    }
  }

  remove(entry: Entry): void {
    this.#entries[entry.kind].delete(entry.id);
    for (const { kind, id } of referencesOf(entry.kind, entry.spec)) {
      const key = keyOf(kind, id);
      const users = this.#users.get(key);
      users?.delete(entry);
      if (users?.size === 0) this.#users.delete(key);
    }
  }
}
