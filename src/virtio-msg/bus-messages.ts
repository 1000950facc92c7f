import { bytesTail, i32, layout, u8, u16, u32, u64 } from '../wire/layout.ts';
import type { EventOf, RequestOf, ResponseOf } from './tables.ts';

const src = (message: string) => `virtio-msg D5, Bus Messages, ${message}`;
const ours = (message: string) => `docs/protocol/bridge.md, ${message}`;
const bitmapBytes = (devices: number) => (devices + 7) >>> 3;

const result = (name: string) =>
  layout(name, ours('REGION_ADD, REGION_DEL, QUEUE_NOTIFY, DEVICE_BIND'), 4, { errno: i32(0, '0, or a Linux errno') });

/** Bus requests: the standard ones, and from 0x88 on those of this bridge (implementation-defined range). */
export const busRequests = {
  GET_DEVICES: {
    id: 0x02,
    request: layout('GET_DEVICES request', src('GET_DEVICES'), 4, {
      offset: u16(0, 'first device number of the window'),
      count: u16(2, 'device numbers in the window'),
    }),
    response: layout(
      'GET_DEVICES response',
      src('GET_DEVICES'),
      6,
      {
        offset: u16(0, 'as asked'),
        nextOffset: u16(2, 'where to go on; 0 at the end'),
        count: u16(4, 'device numbers that the bitmap covers'),
      },
      bytesTail('bitmap', 'count', 'bit n of byte m: device offset + 8m + n is present', bitmapBytes),
    ),
  },
  PING: {
    id: 0x03,
    request: layout('PING request', src('PING'), 4, { data: u32(0, 'any value') }),
    response: layout('PING response', src('PING'), 4, { data: u32(0, 'as asked') }),
  },
  REGION_ADD: {
    id: 0x88,
    request: layout('REGION_ADD request', ours('REGION_ADD'), 32, {
      peer: u32(0, 'whose memory: 0 that of the guest who uses devices; a number to a guest who serves them'),
      area: u16(4, 'area id 1..0x7eff, chosen by the guest, unique in this epoch'),
      flags: u16(6, 'bit 0: read-only'),
      reference: u32(
        8,
        'loopback: index of a descriptor sent with DESCRIPTORS; Xen: grant reference of the first directory page',
      ),
      domain: u32(
        12,
        'Xen: to the service the domain that may map the grants, 0 for its own; from the service the one that granted. Else 0',
      ),
      offset: u64(16, 'where the region starts in what the reference names, a multiple of 4096; Xen: 0'),
      length: u64(24, 'bytes, a multiple of 4096'),
    }),
    response: result('REGION_ADD response'),
  },
  REGION_DEL: {
    id: 0x89,
    request: layout('REGION_DEL request', ours('REGION_DEL'), 8, {
      peer: u32(0, 'memory peer, as in REGION_ADD'),
      area: u16(4, 'area id'),
      reserved: u16(6, 'zero'),
    }),
    response: result('REGION_DEL response'),
  },
  QUEUE_NOTIFY: {
    id: 0x8a,
    request: layout('QUEUE_NOTIFY request', ours('QUEUE_NOTIFY'), 16, {
      device: u16(0, 'device number'),
      flags: u16(
        2,
        'bit 0: kick is given; bit 1: call is given; neither: back to EVENT_AVAIL and EVENT_USED; bit 2: the way is that of another program that works on the queue',
      ),
      queue: u32(4, 'virtqueue index'),
      kick: u32(8, 'loopback: descriptor index; Xen: event channel port'),
      call: u32(12, 'loopback: descriptor index; Xen: event channel port'),
    }),
    response: result('QUEUE_NOTIFY response'),
  },
  /** On a bus whose guest serves devices: which peer's memory a device's addresses mean. */
  DEVICE_BIND: {
    id: 0x8b,
    request: layout('DEVICE_BIND request', ours('DEVICE_BIND'), 8, {
      device: u16(0, 'device number'),
      reserved: u16(2, 'zero'),
      peer: u32(4, 'memory peer whose driver uses the device from now on; 0: nobody, the device is in reset'),
    }),
    response: result('DEVICE_BIND response'),
  },
  /** Asks for the memory behind a shared memory region of a device (GET_SHM). */
  SHM_OPEN: {
    id: 0x8c,
    request: layout('SHM_OPEN request', ours('SHM_OPEN'), 8, {
      device: u16(0, 'device number'),
      reserved: u16(2, 'zero'),
      index: u32(4, 'shared memory id, as in GET_SHM'),
    }),
    response: layout('SHM_OPEN response', ours('SHM_OPEN'), 16, {
      errno: i32(0, '0, or a Linux errno'),
      reference: u32(4, 'loopback: index of the descriptor that the service has sent with DESCRIPTORS'),
      length: u64(8, 'bytes'),
    }),
  },
  /** Xen with persistent grants: the guest wants to end grants that the service may still have mapped. */
  GRANT_RELEASE: {
    id: 0x8d,
    request: layout('GRANT_RELEASE request', ours('GRANT_RELEASE'), 8, {
      first: u32(0, 'first grant reference'),
      count: u32(4, 'references, consecutive'),
    }),
    response: layout('GRANT_RELEASE response', ours('GRANT_RELEASE'), 12, {
      errno: i32(0, '0: none of them is mapped any more; or a Linux errno'),
      first: u32(4, 'as asked'),
      count: u32(8, 'as asked'),
    }),
  },
} as const;

export const busEvents = {
  EVENT_DEVICE: {
    id: 0x40,
    event: layout('EVENT_DEVICE', src('EVENT_DEVICE'), 4, {
      device: u16(0, 'device number'),
      state: u16(2, '1 added, 2 removed'),
    }),
  },
  /** The visible failure of a request that cannot be answered: it was not routed, or not in bounded time. */
  FAILURE: {
    id: 0xc8,
    event: layout('FAILURE', ours('FAILURE'), 12, {
      device: u16(0, 'device number of the failed request'),
      token: u16(2, 'token of the failed request'),
      id: u8(4, 'message id of the failed request'),
      type: u8(5, 'type byte of the failed request'),
      reserved: u16(6, 'zero'),
      errno: i32(8, 'a Linux errno, positive'),
    }),
  },
} as const;

export const deviceAdded = 1;
export const deviceRemoved = 2;
export const regionReadOnly = 1;
export const queueNotifyKick = 1;
export const queueNotifyCall = 2;
/**
 * Kick and call are those of a program that works on the queue itself; on the loopback bus both are eventfds. EPERM where
 * there is none. Alone it asks for that, and changes nothing.
 */
export const queueNotifyProgram = 4;

export type BusRequest = RequestOf<typeof busRequests>;
export type BusResponse = ResponseOf<typeof busRequests>;
export type BusEvent = EventOf<typeof busEvents>;
