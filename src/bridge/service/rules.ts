import { isDeepStrictEqual } from 'node:util';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import {
  type AttachmentSpec,
  type BackendSpec,
  type BusSpec,
  type DomainSpec,
  findProblem,
  idSchema,
  type Kind,
  type Kinds,
  kindSchemas,
  type Precondition,
  withDefaults,
} from '../commands.ts';
import { type Entry, type Inventory, referencesOf } from './inventory.ts';

/** Which other objects stand in the way of one: for a new one all, for one that is tried again those in the lane. */
export type Holder = (other: Entry) => boolean;

const singular: Readonly<Record<Kind, string>> = {
  domains: 'domain',
  buses: 'bus',
  backends: 'backend',
  attachments: 'attachment',
};

/** An object in words: `bus "b0"`. */
export const nameOf = (kind: Kind, id: string): string => `${singular[kind]} "${id}"`;

const listed = (entries: readonly Entry[]): string => {
  const names = entries.slice(0, 5).map(({ kind, id }) => nameOf(kind, id));
  return names.join(', ') + (entries.length > names.length ? ` and ${entries.length - names.length} more` : '');
};

/** @throws VmsgError `invalid-request` */
export function checkShape(kind: Kind, id: string, spec: unknown): void {
  const wrongId = findProblem(idSchema, id);
  if (wrongId !== null) throw new VmsgError('invalid-request', `the id ${wrongId.message}`);
  const problem = findProblem(kindSchemas[kind].spec, spec) ?? specProblem(kind, spec as Kinds[Kind]['spec']);
  if (problem === null) return;
  const field = problem.pointer === '' ? 'the body' : problem.pointer.slice(1);
  throw new VmsgError('invalid-request', `${field} ${problem.message}`, { pointer: problem.pointer });
}

type SchemaProblem = ReturnType<typeof findProblem>;

/** What a schema cannot say about a spec that fulfils it. */
function specProblem(kind: Kind, spec: Kinds[Kind]['spec']): SchemaProblem {
  if (kind === 'domains') return domainProblem(spec as DomainSpec);
  if (kind === 'buses') return busProblem(spec as BusSpec);
  return kind === 'backends' && 'type' in spec && spec.type === 'console' ? consoleProblem(spec) : null;
}

function domainProblem({ xen }: DomainSpec): SchemaProblem {
  if (xen === undefined || (xen.name === undefined) !== (xen.uuid === undefined)) return null;
  return { pointer: '/xen', message: 'needs a name or a uuid, not both' };
}

const xenFields = ['index', 'poolMaxBytes'] as const;

function busProblem(spec: BusSpec): SchemaProblem {
  const isXen = spec.transport === 'xen';
  const foreign = isXen
    ? spec.admittedUids !== undefined && 'admittedUids'
    : xenFields.find((field) => spec[field] !== undefined);
  if (foreign) return { pointer: `/${foreign}`, message: `is not for a bus of transport ${spec.transport}` };
  if (spec.onStuck === undefined) return null;
  const pointer = '/onStuck';
  if (spec.role !== 'device') return { pointer, message: 'is for a bus of role device' };
  return spec.onStuck === 'destroy-mapper' && !isXen
    ? { pointer, message: 'destroy-mapper needs transport xen' }
    : null;
}

function consoleProblem({ ports, cols, rows }: Extract<BackendSpec, { type: 'console' }>): SchemaProblem {
  const paths = ports.map(({ socket, pty }) => socket ?? pty);
  for (const [i, { socket, pty }] of ports.entries()) {
    const pointer = `/ports/${i}`;
    if ((socket === undefined) === (pty === undefined)) return { pointer, message: 'needs a socket or a pty' };
    if (paths.indexOf(paths[i]) < i) return { pointer, message: 'has the path of another port' };
  }
  if ((cols === undefined) === (rows === undefined)) return null;
  return { pointer: cols === undefined ? '/cols' : '/rows', message: 'is missing: cols and rows belong together' };
}

/** @throws VmsgError `precondition-failed` */
export function checkPrecondition(entry: Entry | undefined, condition: Precondition | undefined, what: string): void {
  if (condition === undefined) return;
  if (condition === 'absent') {
    if (entry !== undefined) throw new VmsgError('precondition-failed', `${what} exists`);
    return;
  }
  if (entry === undefined) throw new VmsgError('precondition-failed', `${what} does not exist`);
  if (condition !== 'exists' && condition !== entry.revision) {
    throw new VmsgError('precondition-failed', `${what} has the revision ${entry.revision}, not ${condition}`);
  }
}

/** @throws VmsgError `limit-reached` */
export function checkLimits(inventory: Inventory, kind: Kind): void {
  const most = {
    domains: limits.domainsMax,
    buses: limits.busesMax,
    backends: limits.backendsMax,
    attachments: limits.attachmentsMax,
  }[kind];
  if (inventory.count(kind) >= most)
    throw new VmsgError('limit-reached', `there are ${most} ${kind}, the most allowed`);
}

/** @throws VmsgError `missing-reference` with the pointer of the field */
export function checkReferences(inventory: Inventory, kind: Kind, spec: Kinds[Kind]['spec']): void {
  for (const { field, kind: target, id } of referencesOf(kind, spec)) {
    if (inventory.get(target, id) === undefined) {
      throw new VmsgError('missing-reference', `${nameOf(target, id)} does not exist`, { pointer: `/${field}` });
    }
  }
}

/**
 * Two domain objects may not stand for one Xen domain.
 * @throws VmsgError `domain-taken`
 */
export function checkDomain(inventory: Inventory, id: string, { xen }: DomainSpec): void {
  if (xen === undefined) return;
  const { field, text } = xenIdentity(xen);
  for (const other of inventory.all('domains')) {
    if (other.id === id || other.spec.xen === undefined) continue;
    const theirs = xenIdentity(other.spec.xen);
    if (theirs.field !== field || theirs.text !== text) continue;
    const message = `${nameOf('domains', other.id)} has the ${field} ${text} too`;
    throw new VmsgError('domain-taken', message, { pointer: `/xen/${field}` });
  }
}

/** By what a spec names its Xen domain. */
export const xenIdentity = ({ name, uuid }: NonNullable<DomainSpec['xen']>) =>
  name === undefined
    ? ({ field: 'uuid', text: (uuid ?? '').toLowerCase() } as const)
    : ({ field: 'name', text: name } as const);

/**
 * A bus carries messages as its domain can; on Xen each bus of a domain has an index of its own.
 * @throws VmsgError `invalid-request`, `bus-index-taken`
 */
export function checkBus(inventory: Inventory, id: string, spec: BusSpec, holder: Holder): void {
  const domain = inventory.get('domains', spec.domain);
  if (domain === undefined) return;
  const fitting = domain.spec.xen === undefined ? 'loopback' : 'xen';
  if (spec.transport !== fitting) {
    const message = `${nameOf('domains', spec.domain)} needs transport ${fitting}`;
    throw new VmsgError('invalid-request', message, { pointer: '/transport' });
  }
  if (fitting === 'loopback') return;
  const index = spec.index ?? 0;
  for (const other of inventory.users('domains', spec.domain)) {
    if (other.kind !== 'buses' || other.id === id || !holder(other) || (other.spec.index ?? 0) !== index) continue;
    const message = `index ${index} of ${nameOf('domains', spec.domain)} belongs to ${nameOf('buses', other.id)}`;
    throw new VmsgError('bus-index-taken', message, { pointer: '/index' });
  }
}

/**
 * What may not be shared between attachments: a writable disk, a device number of a bus, room on the bus.
 * @throws VmsgError `backend-busy`, `device-number-taken`, `limit-reached`
 */
export function checkAttachment(inventory: Inventory, id: string, spec: AttachmentSpec, holder: Holder): void {
  const others = (kind: 'buses' | 'backends', target: string) =>
    inventory.attachmentsOf(kind, target).filter((other) => other.id !== id && holder(other));
  const backend = inventory.get('backends', spec.backend);
  const [user] = others('backends', spec.backend);
  if (backend !== undefined && user !== undefined && !isShareable(backend.spec)) {
    const why = backend.spec.type === 'blk' ? 'is writable and' : 'serves one guest and';
    const message = `${nameOf('backends', spec.backend)} ${why} belongs to ${nameOf('attachments', user.id)}`;
    throw new VmsgError('backend-busy', message, { pointer: '/backend' });
  }
  const neighbours = others('buses', spec.bus);
  if (neighbours.length >= limits.devicesPerBus) {
    throw new VmsgError('limit-reached', `${nameOf('buses', spec.bus)} has ${limits.devicesPerBus} devices`);
  }
  const wanted = spec.deviceNumber;
  if (wanted === undefined) return;
  const taker = neighbours.find((other) => other.spec.deviceNumber === wanted || other.lane.deviceNumber === wanted);
  if (taker !== undefined) {
    const message = `device number ${wanted} of ${nameOf('buses', spec.bus)} belongs to ${nameOf('attachments', taker.id)}`;
    throw new VmsgError('device-number-taken', message, { pointer: '/deviceNumber' });
  }
}

const elsewhere: ReadonlySet<string | undefined> = new Set([
  'guest',
  'bridge',
  'vhost-user',
  'program',
  'qemu-storage-daemon',
  'virtiofsd',
  'passt',
  'vhost-device-vsock',
]);

/** Whether a device is served by somebody who may come and go. @param type of a backend */
export const isServedElsewhere = (type: BackendSpec['type'] | undefined): boolean => elsewhere.has(type);

/** A writable disk and what is one device belong to one; of other kinds each attachment gets a device of its own. */
const isShareable = (spec: BackendSpec): boolean =>
  spec.type === 'blk' ? spec.readOnly === true : spec.type !== 'console' && !isServedElsewhere(spec.type);

/**
 * Whether a put changes an object. Absent fields count as their defaults.
 * @throws VmsgError `immutable` with the pointer of the first field that may not change, `in-use`
 */
export function checkChange(inventory: Inventory, entry: Entry, next: Kinds[Kind]['spec']): 'unchanged' | 'updated' {
  const schema = kindSchemas[entry.kind].spec;
  const [before, after] = [withDefaults(schema, entry.spec), withDefaults(schema, next)] as Record<string, unknown>[];
  if (isDeepStrictEqual(before, after)) return 'unchanged';
  if (entry.kind === 'domains' && isDeepStrictEqual(before?.xen, after?.xen)) return 'updated';
  if (entry.kind === 'backends') {
    const users = inventory.users('backends', entry.id);
    if (users.length === 0) return 'updated';
    throw new VmsgError('in-use', `${nameOf('backends', entry.id)} is used by ${listed(users)}`);
  }
  const fields = entry.kind === 'domains' ? ['xen'] : Object.keys({ ...before, ...after });
  const field = fields.find((name) => !isDeepStrictEqual(before?.[name], after?.[name]));
  throw new VmsgError('immutable', `${field} of ${nameOf(entry.kind, entry.id)} cannot change`, {
    pointer: `/${field}`,
  });
}

/** @throws VmsgError `in-use` naming the users */
export function checkUnused(inventory: Inventory, entry: Entry): void {
  const users = inventory.users(entry.kind, entry.id);
  if (users.length > 0) {
    throw new VmsgError('in-use', `${nameOf(entry.kind, entry.id)} is used by ${listed(users)}`);
  }
}

/** @throws VmsgError `config-owned` */
export function checkWritable(entry: Entry): void {
  if (entry.origin === 'config') {
    throw new VmsgError('config-owned', `${nameOf(entry.kind, entry.id)} comes from the config file`);
  }
}
