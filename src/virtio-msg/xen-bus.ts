/**
 * What the two sides of a Xen bus write to xenstore, and what addresses on it mean: docs/protocol/xen-bus.md. The
 * tables of that page are generated from here.
 */
export const xenBusVersion = 1;

/** Name of the device kind below `device/` and `backend/`. */
const deviceKind = 'vmsg';

/** Values of a `state` node (public/io/xenbus.h). */
export const xenbusState = {
  initialising: 1,
  initWait: 2,
  initialised: 3,
  connected: 4,
  closing: 5,
  closed: 6,
} as const;

const domainPath = (domid: number): string => `/local/domain/${domid}`;
/** Directory of one bus as its guest sees it. */
export const frontendPath = (domid: number, index: number): string =>
  `${domainPath(domid)}/device/${deviceKind}/${index}`;
/** Directory of all buses that a service has with one guest. */
export const backendsPath = (service: number, domid?: number): string =>
  `${domainPath(service)}/backend/${deviceKind}${domid === undefined ? '' : `/${domid}`}`;
/** Directory of one bus as its service sees it. */
export const backendPath = (service: number, domid: number, index: number): string =>
  `${backendsPath(service, domid)}/${index}`;

/** Every number in xenstore is decimal; a flag is 1 where it is set and else absent; lists are separated by blanks. */
export const backendNodes = {
  frontend: 'path of the guest’s directory',
  'frontend-id': 'domain of the guest',
  state: 'XenbusState of the service',
  online: '1 while the bus exists; 0: it is being removed',
  version: 'highest version of this protocol that the service speaks',
  role: '`driver`: the guest uses devices; `device`: it serves them',
  dialects: 'list of virtio-msg dialects, 5 for D5',
  revision: 'virtio-msg transport revision',
  'transport-features': 'virtio-msg transport feature bits',
  'max-message-size': 'largest message that the service handles, bytes',
  'max-ring-pages': 'most pages of one ring',
  'max-pool-bytes': 'most bytes of all regions of the bus together',
  'feature-sleep-words': 'the sleep words of the rings are used',
  'feature-queue-evtchn': 'a queue may have an event channel of its own (QUEUE_NOTIFY)',
  'feature-persistent': 'grants may stay mapped until GRANT_RELEASE',
  epoch: 'epoch of the connection that is offered, or made',
  token: '32 hexadecimal digits, written before `state` becomes Connected; a guest presents it to resume this epoch',
  resumed: '1: the devices kept their state from the epoch that the guest presented',
  error: 'why the service went to Closing, for a person',
} as const;

/** Directory `device/<number>` below the backend directory, for devices whose memory another domain must reach. */
export const backendDeviceNodes = {
  'peer-domid': 'domain that serves the device, to which its driver grants a pool',
  'data-path': '`direct`: that domain maps the pool of the guest itself',
} as const;

export const frontendNodes = {
  backend: 'path of the service’s directory; written by the service',
  'backend-id': 'domain of the service; written by the service',
  state: 'XenbusState of the guest',
  version: 'version in use: the smaller of both',
  dialect: 'dialect in use, one of those offered',
  'max-message-size': 'largest message that the guest handles, bytes; both sides use the smaller value',
  'ring-to-service-refs': 'list of the grant references of the ring to the service, in order',
  'ring-to-guest-refs': 'list of the grant references of the ring to the guest, in order',
  'event-channel': 'unbound event channel port of the guest, for doorbells of both directions',
  'feature-sleep-words': 'set only if the service sets it',
  'feature-queue-evtchn': 'set only if the service sets it',
  'feature-persistent': 'set only if the service sets it',
  epoch: 'epoch of the service’s offer that this answers, written before `state` becomes Initialised',
  'resume-epoch': 'epoch to resume; absent for a fresh start',
  'resume-token': 'token of that epoch',
  error: 'why the guest went to Closing, for a person',
} as const;

/** Bytes of the first page of the ring to the service: 1 while that side lives. Its kernel clears it when it ends. */
export const aliveByte = { guest: 72, service: 73 } as const;

/** Upper half of an address that names a grant: bit 63 | first reference << 12 | offset. */
export const isGrantAddress = (hi: number): boolean => hi >>> 31 === 1;
/** First reference of such an address; may exceed 32 bits when a guest makes it up. */
export const grantOfAddress = (hi: number, lo: number): number => (hi & 0x7fff_ffff) * 0x10_0000 + (lo >>> 12);
export const grantAddressHi = (reference: number): number => (0x8000_0000 | (reference >>> 20)) >>> 0;
export const grantAddressLo = (reference: number, offset: number): number => ((reference << 12) | offset) >>> 0;
