import path from 'node:path';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { LaneBackendSpec, LaneBusSpec } from '../lane/protocol.ts';
import { AwaitedError, type DomainPresence, incarnationOf } from './domains.ts';
import type { Entry, Inventory } from './inventory.ts';
import { laneProgramSpec, type ProgramSources } from './program-specs.ts';
import { nameOf } from './rules.ts';

/** What the lane's view of a bus is made from. */
export interface BusSources {
  readonly inventory: Inventory;
  /** Directory of the bus sockets. */
  readonly busDir: string;
  /** Directory of the recovery directories. */
  readonly recoveryDir: string;
  /** User that the service runs as. */
  readonly uid: number;
  /** Number of a loopback domain. */
  readonly loopbackDomid: (domain: string) => number;
  /** What stands behind a Xen domain. */
  readonly presenceOf: (domain: Entry<'domains'>) => DomainPresence;
}

/** What a guest connects to. */
export function busAddress({ id, spec }: Entry<'buses'>, { inventory, busDir, presenceOf }: BusSources): string {
  if (spec.transport === 'loopback') return path.join(busDir, `${id}.sock`);
  const domain = inventory.get('domains', spec.domain);
  const running = domain === undefined ? null : presenceOf(domain).running;
  return `xen:${running?.domid ?? '?'}/device/vmsg/${spec.index ?? 0}`;
}

/** @throws AwaitedError when the domain of the bus does not run, VmsgError when it cannot be opened as it is wanted */
export function laneBusSpec(entry: Entry<'buses'>, sources: BusSources): LaneBusSpec {
  const { id, spec } = entry;
  const common = {
    bus: id,
    role: spec.role,
    maxMessageSizeBytes: spec.maxMessageSizeBytes ?? limits.messageSizeDefaultBytes,
    // Their files differ, and a bus may change from one to the other in the config file.
    recoveryDir: path.join(sources.recoveryDir, spec.transport === 'xen' ? `${id}@xen` : id),
  };
  return spec.transport === 'loopback'
    ? { ...common, ...loopbackSpec(entry, sources) }
    : { ...common, ...xenSpec(entry, sources) };
}

function loopbackSpec(entry: Entry<'buses'>, sources: BusSources) {
  const { uid } = sources;
  const socketPath = busAddress(entry, sources);
  if (Buffer.byteLength(socketPath) > limits.unixSocketPathMaxBytes) {
    const most = `${limits.unixSocketPathMaxBytes} bytes, the most a Unix socket can have`;
    throw new VmsgError('invalid-request', `the socket path ${socketPath} is longer than ${most}: choose a shorter id`);
  }
  const admittedUids = entry.spec.admittedUids ?? [...new Set([uid, 0])];
  return {
    transport: 'loopback' as const,
    domid: sources.loopbackDomid(entry.spec.domain),
    socketPath,
    // The kernel tells who connects; the mode only has to let everybody through who may be admitted.
    socketMode: admittedUids.every((admitted) => admitted === uid || admitted === 0) ? 0o600 : 0o666,
    admittedUids,
    ringMaxBytes: limits.ringMaxBytes,
  };
}

function xenSpec(entry: Entry<'buses'>, { inventory, presenceOf }: BusSources) {
  const { spec } = entry;
  const domain = inventory.get('domains', spec.domain);
  const { running, reason } = domain === undefined ? { running: null, reason: null } : presenceOf(domain);
  if (running === null) {
    throw new AwaitedError(`domain ${spec.domain} is not running${reason === null ? '' : `: ${reason}`}`);
  }
  const index = spec.index ?? 0;
  // One object may name a domain by name and another one by UUID.
  const isTaken = (other: Entry<'buses'>): boolean =>
    other !== entry &&
    other.spec.transport === 'xen' &&
    other.lane.state !== 'out' &&
    other.lane.domid === running.domid &&
    (other.spec.index ?? 0) === index;
  for (const other of inventory.all('buses')) {
    if (!isTaken(other)) continue;
    const message = `index ${index} of the Xen domain ${running.domid} belongs to ${nameOf('buses', other.id)}`;
    throw new VmsgError('bus-index-taken', message, { pointer: '/index' });
  }
  return {
    transport: 'xen' as const,
    domid: running.domid,
    incarnation: incarnationOf(running) ?? '',
    index,
    poolMaxBytes: spec.poolMaxBytes ?? limits.poolMaxBytes,
  };
}

/** A virtio-blk identifier has 20 bytes (virtio 1.3, section 5.2.6). */
const serialMaxChars = 20;

/** @throws VmsgError backend-unusable: a program that the config file does not name */
export function laneBackendSpec({ id, spec }: Entry<'backends'>, programs?: ProgramSources): LaneBackendSpec {
  switch (spec.type) {
    case 'rng':
      return { type: 'rng', source: spec.source ?? '/dev/urandom' };
    case 'console': {
      const ports = spec.ports.map(({ name = '', ...where }) => ({ name, ...where }));
      return { ...spec, ports };
    }
    case 'shm':
      return { type: 'shm', bytes: spec.bytes ?? limits.shmRegionDefaultBytes };
    case 'template':
      return { type: 'template', greeting: spec.greeting ?? 'Hello' };
    case 'guest':
    case 'bridge':
    case 'vhost-user':
      return spec;
    case 'qemu-storage-daemon':
    case 'virtiofsd':
    case 'passt':
    case 'vhost-device-vsock':
    case 'program':
      return laneProgramSpec(id, spec, programs);
    case 'blk': {
      const { path: file, readOnly = false, serial = id.slice(0, serialMaxChars), queues } = spec;
      return { type: 'blk', path: file, readOnly, serial, ...(queues === undefined ? {} : { queues }) };
    }
  }
}
