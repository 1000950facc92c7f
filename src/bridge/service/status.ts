import { type ChannelCounters, newCounters } from '../../device/channel.ts';
import { deviceName } from '../../virtio/device-ids.ts';
import { describeStatus, status as statusBits } from '../../virtio/status.ts';
import { shapeOf } from '../backend/vhost-user/shapes.ts';
import type {
  AttachmentStatus,
  BackendSpec,
  BackendStatus,
  BusStatus,
  DomainStatus,
  Kind,
  Resource,
} from '../commands.ts';
import type { BusSnapshot, DeviceSnapshot, LaneSnapshot } from '../lane/protocol.ts';
import type { DomainPresence } from './domains.ts';
import { type Entry, type Inventory, stateOutside } from './inventory.ts';
import { isPreset, type ProgramSources, vhostUserDeviceOf } from './program-specs.ts';
import { isServedElsewhere } from './rules.ts';

/** What a status is made from. */
export interface StatusSources {
  readonly inventory: Inventory;
  /** Null when the lane could not be asked. */
  readonly snapshot: LaneSnapshot | null;
  readonly laneFailure: string | null;
  readonly loopbackDomid: (domain: string) => number;
  readonly presenceOf: (domain: Entry<'domains'>) => DomainPresence;
  readonly addressOf: (bus: Entry<'buses'>) => string;
  readonly programs: ProgramSources | undefined;
}

export const noCounters: Readonly<ChannelCounters> = newCounters();

export const hex = (value: bigint): string => `0x${value.toString(16)}`;

/** Names of the virtio status bits that are set. */
export const statusNames = (status: number): string[] => (status === 0 ? [] : describeStatus(status).split('|'));

/** The object as a client sees it. */
export function resourceOf<K extends Kind>(entry: Entry, sources: StatusSources): Resource<K> {
  const { id, kind, origin, revision, spec } = entry;
  return { id, kind, origin, revision, spec, status: statusOf(entry, sources) } as Resource as Resource<K>;
}

function statusOf(entry: Entry, sources: StatusSources): Resource['status'] {
  switch (entry.kind) {
    case 'domains':
      return domainStatus(entry, sources);
    case 'buses':
      return busStatus(entry, sources);
    case 'backends':
      return backendStatus(entry, sources);
    case 'attachments':
      return attachmentStatus(entry, sources);
  }
}

const visibleIds = (entries: readonly Entry[]): string[] =>
  entries
    .filter(({ phase }) => phase !== 'creating')
    .map(({ id }) => id)
    .sort();

function domainStatus(entry: Entry<'domains'>, sources: StatusSources): DomainStatus {
  const { id, spec } = entry;
  const common = {
    buses: visibleIds(sources.inventory.users('domains', id)),
    stuckShares: stuckShares(entry, sources),
  };
  if (spec.xen === undefined) {
    const domid = sources.loopbackDomid(id);
    return { state: 'running', reason: null, domid, name: null, uuid: null, ...common };
  }
  const { running, reason } = sources.presenceOf(entry);
  if (running === null) return { state: 'absent', reason, domid: null, name: null, uuid: null, ...common };
  return { state: 'running', reason, ...running, ...common };
}

/** What the lane sees on the buses where the domain serves devices. */
function stuckShares({ id }: Entry<'domains'>, { inventory, snapshot }: StatusSources): DomainStatus['stuckShares'] {
  return inventory.users('domains', id).flatMap(({ id: bus }) => {
    const stuck = busIn(snapshot, bus)?.stuck ?? [];
    return stuck.map((share) => ({ bus, ...share }));
  });
}

function backendStatus({ id, spec }: Entry<'backends'>, { inventory, programs }: StatusSources): BackendStatus {
  return { deviceType: deviceTypeOf(spec, programs), attachments: visibleIds(inventory.users('backends', id)) };
}

const deviceTypeOf = (spec: BackendSpec, programs: ProgramSources | undefined): string =>
  vhostUserDeviceOf(spec, programs) ?? (spec.type === 'program' ? 'unknown' : spec.type);

/** As a vhost-user backend begins. */
function wantsDirect(spec: BackendSpec | undefined): boolean {
  if (spec === undefined || !('dataPath' in spec)) return isProgram(spec);
  return spec.dataPath === 'direct' || (spec.dataPath !== 'shadow' && isProgram(spec));
}

const isProgram = (spec: BackendSpec | undefined): boolean =>
  spec !== undefined && (spec.type === 'program' || isPreset(spec.type));

/** What an attachment has to say before its device is there. */
function expected(
  spec: BackendSpec | undefined,
  programs: ProgramSources | undefined,
): Pick<AttachmentStatus, 'deviceType' | 'recovery' | 'dataPath'> {
  const deviceType = spec === undefined ? 'unknown' : deviceTypeOf(spec, programs);
  const served = spec === undefined ? undefined : vhostUserDeviceOf(spec, programs);
  if (served !== undefined) {
    const isDirect = wantsDirect(spec);
    const resumes = !isDirect && shapeOf(served).stateless;
    return { deviceType, recovery: resumes ? 'resume' : 'reset', dataPath: isDirect ? 'direct' : 'shadow' };
  }
  return isServedElsewhere(spec?.type)
    ? { deviceType, recovery: 'reset', dataPath: 'relayed' }
    : { deviceType, recovery: 'resume', dataPath: 'direct' };
}

export const busIn = (snapshot: LaneSnapshot | null, id: string): BusSnapshot | undefined =>
  snapshot?.buses.find(({ bus }) => bus === id);

function busStatus(entry: Entry<'buses'>, sources: StatusSources): BusStatus {
  const bus = busIn(sources.snapshot, entry.id);
  return {
    ...busState(entry, bus, sources.laneFailure),
    address: sources.addressOf(entry),
    epoch: hex(bus?.epoch ?? 0n),
    peer: bus?.peer ?? null,
    counters: bus?.counters ?? noCounters,
    regions: bus?.regions ?? 0,
    regionBytes: bus?.regionBytes ?? 0,
    regionsDraining: bus?.regionsDraining ?? 0,
    grants: bus?.grants ?? null,
    diagnosis: bus?.diagnosis ?? null,
    attachments: visibleIds(sources.inventory.users('buses', entry.id)),
  };
}

export function busState(
  { lane }: Entry<'buses'>,
  bus: BusSnapshot | undefined,
  laneFailure: string | null,
): Pick<BusStatus, 'state' | 'reason'> {
  if (laneFailure !== null) return { state: 'failed', reason: `the lane failed: ${laneFailure}` };
  if (lane.state === 'in') return { state: bus?.state ?? 'listening', reason: null };
  return { state: stateOutside(lane), reason: lane.reason };
}

function attachmentStatus(entry: Entry<'attachments'>, sources: StatusSources): AttachmentStatus {
  const bus = busIn(sources.snapshot, entry.spec.bus);
  const device = bus?.devices.find(({ attachment }) => attachment === entry.id);
  const before = expected(sources.inventory.get('backends', entry.spec.backend)?.spec, sources.programs);
  return {
    ...attachmentState(entry, device, sources.laneFailure),
    deviceNumber: entry.lane.deviceNumber,
    deviceType: device === undefined ? before.deviceType : deviceName(device.deviceType),
    deviceStatus: statusNames(device?.status ?? 0),
    recovery: device?.recovery ?? before.recovery,
    dataPath: device?.dataPath ?? before.dataPath,
    dataPathReason: device?.dataPathReason ?? null,
    epoch: hex(bus?.epoch ?? 0n),
    queues: device?.queues ?? [],
    requests: device === undefined ? 0 : device.requests,
    bytes: device === undefined ? 0 : device.bytes,
  };
}

function attachmentState(
  { lane, phase }: Entry<'attachments'>,
  device: DeviceSnapshot | undefined,
  laneFailure: string | null,
): Pick<AttachmentStatus, 'state' | 'reason'> {
  if (laneFailure !== null) return { state: 'failed', reason: `the lane failed: ${laneFailure}` };
  if (phase === 'deleting') return { state: 'detaching', reason: null };
  if (lane.state !== 'in') return { state: stateOutside(lane), reason: lane.reason };
  const degraded = device === undefined ? lane.degraded : isDegraded(device);
  return { state: degraded ? 'degraded' : 'active', reason: device?.reason ?? null };
}

/** Whether a device cannot serve its guest before a reset. */
export const isDegraded = ({ status, reason }: Pick<DeviceSnapshot, 'status' | 'reason'>): boolean =>
  (status & statusBits.DEVICE_NEEDS_RESET) !== 0 || reason !== null;
