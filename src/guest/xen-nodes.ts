import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { asDomid, type Domid, type Xenstore, type XenstoreAccess } from '../ports/hypervisor.ts';
import {
  type backendDeviceNodes,
  type backendNodes,
  backendPath,
  type frontendNodes,
  frontendPath,
  xenBusVersion,
  xenbusState,
} from '../virtio-msg/xen-bus.ts';

/** What this guest does on the bus. */
export type XenRole = 'driver' | 'device';

/** Where the nodes of one bus are. */
export interface XenPlace {
  readonly own: Domid;
  readonly service: Domid;
  /** Directory of this guest, and of the service. */
  readonly frontend: string;
  readonly backend: string;
}

/** What the service offers, checked. */
export interface XenOffer {
  readonly epoch: bigint;
  readonly revision: number;
  readonly transportFeatures: number;
  /** Bytes. */
  readonly maxMessageSize: number;
  readonly maxRingPages: number;
  /** Bytes of all regions. */
  readonly maxPoolBytes: number;
  readonly sleepWords: boolean;
  readonly queueChannels: boolean;
  readonly persistentGrants: boolean;
}

/** What this guest answers. */
export interface XenAnswer
  extends Pick<XenOffer, 'maxMessageSize' | 'sleepWords' | 'queueChannels' | 'persistentGrants'> {
  readonly toServiceRefs: Uint32Array;
  readonly toGuestRefs: Uint32Array;
  readonly port: number;
  readonly resume: { readonly epoch: bigint; readonly token: Uint8Array } | undefined;
}

/** What the service says when the connection is made. */
export interface XenAdmission {
  readonly token: Uint8Array;
  readonly resumed: boolean;
}

type Nodes = XenstoreAccess;
type BackendNode = keyof typeof backendNodes;

const dialect = 5;
const u32Max = 0xffff_ffff;
const messageSizeEnd = 0x1_0000;
const textMaxChars = 200;

const violation = (what: string): VmsgError => new VmsgError('protocol-violation', `the service ${what}`);

/** @returns undefined for what is no decimal number from `least` to `most` */
function numberIn(text: string | undefined, least: number, most: number): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const value = Number(text);
  return value >= least && value <= most ? value : undefined;
}

function epochIn(text: string | undefined): bigint | undefined {
  if (text === undefined || !/^\d{1,20}$/.test(text)) return undefined;
  const value = BigInt(text);
  return value > 0n && value < 1n << 64n ? value : undefined;
}

/** @throws VmsgError 'unavailable', 'protocol-violation'. @returns undefined while the bus does not exist */
export function locate(store: Xenstore, index: number): XenPlace | undefined {
  const own = asDomid(numberIn(store.read('domid'), 0, u32Max) ?? -1);
  if (own === undefined)
    throw new VmsgError('unavailable', 'no Xen here: xenstore does not tell the number of this domain');
  const frontend = frontendPath(own, index);
  return store.transaction((nodes) => {
    const id = nodes.read(`${frontend}/backend-id`);
    const path = nodes.read(`${frontend}/backend`);
    if (id === undefined || path === undefined) return undefined;
    const service = asDomid(numberIn(id, 0, u32Max) ?? -1);
    if (service === undefined) throw violation('has no domain number in backend-id');
    const backend = backendPath(service, own, index);
    if (path !== backend) throw violation(`names a directory that is not ${backend}`);
    return { own, service, frontend, backend };
  });
}

export const stateOf = (nodes: Nodes, directory: string): number | undefined =>
  numberIn(nodes.read(`${directory}/state`), 0, xenbusState.closed + 2);

/** State and epoch of the service's side. */
export function serviceSide(
  nodes: Nodes,
  { backend }: XenPlace,
): { state: number | undefined; epoch: bigint | undefined } {
  return { state: stateOf(nodes, backend), epoch: epochIn(nodes.read(`${backend}/epoch`)) };
}

/** Why the service closes, as it says. */
export function errorText(nodes: Nodes, { backend }: XenPlace): string | undefined {
  return nodes
    .read(`${backend}/error`)
    ?.slice(0, textMaxChars)
    .replace(/[^\x20-\x7e]/g, '?');
}

/** @throws VmsgError 'protocol-violation'; 'invalid-request' on a bus for the other role */
export function readOffer(nodes: Nodes, { backend }: XenPlace, role: XenRole): XenOffer {
  const text = (name: BackendNode): string | undefined => nodes.read(`${backend}/${name}`);
  const number = (name: BackendNode, least: number, most: number): number => {
    const value = numberIn(text(name), least, most);
    if (value === undefined) throw violation(`offers no ${name} from ${least} to ${most}`);
    return value;
  };
  number('version', xenBusVersion, u32Max);
  const offered = text('role');
  if (offered !== 'driver' && offered !== 'device') throw violation('offers no role');
  if (offered !== role) {
    const what = offered === 'driver' ? 'uses devices' : 'serves devices';
    throw new VmsgError('invalid-request', `the bus is for a guest that ${what} (role ${offered})`);
  }
  if (!(text('dialects') ?? '').split(' ').includes(String(dialect)))
    throw violation(`does not offer dialect D${dialect}`);
  const epoch = epochIn(text('epoch'));
  if (epoch === undefined) throw violation('offers no epoch');
  return {
    epoch,
    revision: number('revision', 1, u32Max),
    transportFeatures: number('transport-features', 0, u32Max),
    maxMessageSize: number('max-message-size', limits.messageSizeMinBytes, messageSizeEnd - 1),
    maxRingPages: Math.min(number('max-ring-pages', 1, u32Max), limits.xenRingMaxPages),
    maxPoolBytes: number('max-pool-bytes', 0, u32Max),
    sleepWords: text('feature-sleep-words') === '1',
    queueChannels: text('feature-queue-evtchn') === '1',
    persistentGrants: text('feature-persistent') === '1',
  };
}

/**
 * Writes the guest's nodes and says that they are complete.
 * @returns false, with nothing written, when the offer is not there any more
 */
export function publishAnswer(store: Xenstore, place: XenPlace, offer: XenOffer, answer: XenAnswer): boolean {
  const { frontend } = place;
  const flag = (on: boolean): string | undefined => (on ? '1' : undefined);
  const values: Readonly<Partial<Record<keyof typeof frontendNodes, string | undefined>>> = {
    version: String(xenBusVersion),
    dialect: String(dialect),
    'max-message-size': String(answer.maxMessageSize),
    'ring-to-service-refs': answer.toServiceRefs.join(' '),
    'ring-to-guest-refs': answer.toGuestRefs.join(' '),
    'event-channel': String(answer.port),
    'feature-sleep-words': flag(answer.sleepWords),
    'feature-queue-evtchn': flag(answer.queueChannels),
    'feature-persistent': flag(answer.persistentGrants),
    epoch: String(offer.epoch),
    'resume-epoch': answer.resume === undefined ? undefined : String(answer.resume.epoch),
    'resume-token': answer.resume === undefined ? undefined : Buffer.from(answer.resume.token).toString('hex'),
    error: undefined,
    state: String(xenbusState.initialised),
  };
  return store.transaction((nodes) => {
    const { state, epoch } = serviceSide(nodes, place);
    if (state !== xenbusState.initWait || epoch !== offer.epoch) return false;
    for (const [name, value] of Object.entries(values)) {
      // What an earlier process of this domain has left would count as said.
      if (value === undefined) nodes.remove(`${frontend}/${name}`);
      else nodes.write(`${frontend}/${name}`, value);
    }
    return true;
  });
}

/** Whether the nodes still say what this guest wrote: another process of the domain may have written its own. */
export const isOurs = (nodes: Nodes, { frontend }: XenPlace, { port, toServiceRefs }: XenAnswer): boolean =>
  nodes.read(`${frontend}/event-channel`) === String(port) &&
  nodes.read(`${frontend}/ring-to-service-refs`) === toServiceRefs.join(' ');

/** @throws VmsgError 'protocol-violation' */
export function readAdmission(nodes: Nodes, { backend }: XenPlace): XenAdmission {
  const token = nodes.read(`${backend}/token`) ?? '';
  if (!/^[0-9a-f]{32}$/i.test(token)) throw violation('gives no token');
  return { token: new Uint8Array(Buffer.from(token, 'hex')), resumed: nodes.read(`${backend}/resumed`) === '1' };
}

/** Writes the guest's state, unless its directory is gone. */
export function writeState(store: Xenstore, { frontend }: XenPlace, state: keyof typeof xenbusState): void {
  store.transaction((nodes) => {
    if (nodes.read(`${frontend}/backend`) !== undefined) nodes.write(`${frontend}/state`, String(xenbusState[state]));
  });
}

type DeviceNode = keyof typeof backendDeviceNodes;

/** Domain that maps the memory for a device itself; undefined: the service's does. */
export function peerOfDevice(nodes: Nodes, { backend }: XenPlace, device: number): Domid | undefined {
  const node = (name: DeviceNode): string | undefined => nodes.read(`${backend}/device/${device}/${name}`);
  if (node('data-path') !== 'direct') return undefined;
  return asDomid(numberIn(node('peer-domid'), 0, u32Max) ?? -1);
}
