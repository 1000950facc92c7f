import { createHash } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { VmsgError } from '../../kit/errors.ts';
import { type Kind, type Kinds, kinds } from '../commands.ts';
import type { Store, StoredObject, StoreState } from '../store.ts';
import { lowestFreeDomid } from './domids.ts';
import { type Inventory, makeEntry } from './inventory.ts';
import { checkLimits, checkShape } from './rules.ts';

/** Objects of the config file by kind and id. */
export type ConfiguredObjects = { readonly [K in Kind]: Readonly<Record<string, Kinds[K]['spec']>> };

/**
 * Fills the inventory at start: the config file's objects in its order, then the stored ones in the order they were
 * made. Where both have an id, the config file wins; the stored object stays in the store and shows again once the
 * config file has given up the id. Gives every loopback domain its number.
 * @param onHidden called for each stored object that the config file hides
 * @throws VmsgError `invalid-config`, `limit-reached`, `system-call`
 */
export function merge(
  inventory: Inventory,
  store: Store,
  configured: ConfiguredObjects,
  onHidden: (kind: Kind, id: string) => void,
): void {
  for (const kind of kinds) {
    for (const [id, spec] of Object.entries(configured[kind])) {
      checkConfigured(kind, id, spec);
      checkLimits(inventory, kind);
      inventory.add(makeEntry({ kind, id, origin: 'config', revision: digest(spec), spec, phase: 'present' }));
    }
    const stored = [...(store.state.objects[kind] as Map<string, StoredObject>)];
    for (const [id, { revision, spec }] of stored.sort(([, a], [, b]) => a.revision - b.revision)) {
      if (inventory.get(kind, id) !== undefined) onHidden(kind, id);
      else inventory.add(makeEntry({ kind, id, origin: 'api', revision, spec, phase: 'present' }));
    }
  }
  const domids = numbered(inventory, store.state);
  if (isDeepStrictEqual(domids, store.state.domids)) return;
  store.commit((draft) => {
    draft.domids.clear();
    for (const [id, domid] of domids) draft.domids.set(id, domid);
  });
}

function checkConfigured(kind: Kind, id: string, spec: unknown): void {
  try {
    checkShape(kind, id, spec);
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    throw new VmsgError('invalid-config', error.message, { pointer: `/${kind}/${id}${error.pointer ?? ''}` });
  }
}

/** The numbers that domains had, and new ones for new domains. */
function numbered(inventory: Inventory, { domids }: StoreState): Map<string, number> {
  const domains = [...inventory.all('domains')].filter(({ spec }) => spec.xen === undefined);
  const kept = [...domids].filter(([id]) => domains.some((domain) => domain.id === id));
  const result = new Map(kept);
  for (const { id } of domains) if (!result.has(id)) result.set(id, lowestFreeDomid(result));
  return result;
}

/** Revision of an object that is not stored: the same after a restart, another one with another spec. */
function digest(spec: object): number {
  return createHash('sha256').update(JSON.stringify(spec)).digest().readUIntBE(0, 6);
}
