import { bytes, bytesTail, layout, u16, u32, u64 } from '../wire/layout.ts';

const source = (section: string): string => `vhost-user protocol, "${section}"`;

export const messageHeader = layout('vhost-user header', source('Header'), 12, {
  request: u32(0, 'number of the request'),
  flags: u32(4, 'bits 0..1 version, bit 2 reply, bit 3 need_reply'),
  size: u32(8, 'bytes of the payload'),
});

export const VERSION = 1;
export const VERSION_MASK = 3;
export const FLAG_REPLY = 4;
export const FLAG_NEED_REPLY = 8;

export const empty = layout('no payload', source('Payload'), 0, {});

export const number = layout('u64', source('A single 64-bit integer'), 8, { value: u64(0, 'a number') });

export const vringState = layout('vring state', source('A vring state description'), 8, {
  index: u32(0, 'queue'),
  num: u32(4, 'size, base or 1 for enabled, by the request'),
});

export const vringAddress = layout('vring address', source('A vring address description'), 40, {
  index: u32(0, 'queue'),
  flags: u32(4, 'bit 0: log writes to the used ring'),
  descriptor: u64(8, 'user address of the descriptor area'),
  used: u64(16, 'user address of the device area'),
  available: u64(24, 'user address of the driver area'),
  log: u64(32, 'guest address for the log'),
});

/** A queue and its descriptor in one number: SET_VRING_KICK, CALL and ERR. */
export const VRING_INDEX_MASK = 0xffn;
export const VRING_NO_FD = 0x100n;

const regionFields = {
  guestAddress: u64(0, 'guest address'),
  size: u64(8, 'bytes'),
  userAddress: u64(16, 'address in the front-end'),
  mmapOffset: u64(24, 'where the region begins in its file'),
} as const;

export const memoryRegion = layout('memory region', source('Memory region description'), 32, regionFields);

/** With XEN_MMAP every region is of this form. */
export const xenMemoryRegion = layout('memory region of Xen', source('Memory region description'), 40, {
  ...regionFields,
  xenFlags: u32(32, 'xenMapFlags'),
  domid: u32(36, 'domain that the memory belongs to'),
});

/**
 * How a back-end maps a region of Xen. The specification counts the last bit as number 8; the back-ends that exist
 * (rust-vmm) mean the value 8.
 */
export const xenMapFlags = { FOREIGN: 1, GRANT: 2, NO_ADVANCE_MAP: 8 } as const;

const tableFields = { count: u32(0, 'regions'), padding: u32(4, 'zero') } as const;
const tableSource = source('Multiple Memory regions description');

export const memoryTable = layout(
  'memory table',
  tableSource,
  8,
  tableFields,
  bytesTail('regions', 'count', 'memory region, for each', (count) => count * memoryRegion.size),
);

export const xenMemoryTable = layout(
  'memory table of Xen',
  tableSource,
  8,
  tableFields,
  bytesTail('regions', 'count', 'memory region of Xen, for each', (count) => count * xenMemoryRegion.size),
);

export const singleRegion = layout('single region', source('Single memory region description'), 40, {
  padding: u64(0, 'zero'),
  region: bytes(8, memoryRegion.size, 'memory region'),
});

export const xenSingleRegion = layout('single region of Xen', source('Single memory region description'), 48, {
  padding: u64(0, 'zero'),
  region: bytes(8, xenMemoryRegion.size, 'memory region of Xen'),
});

export const configSpace = layout(
  'config space',
  source('Virtio device config space'),
  12,
  {
    offset: u32(0, 'first byte'),
    size: u32(4, 'bytes'),
    flags: u32(8, '0: written by the driver, 1: restored after a migration'),
  },
  bytesTail('content', 'size', 'the bytes of the configuration space'),
);

export const logArea = layout('log', source('Log description'), 16, {
  size: u64(0, 'bytes of the dirty log'),
  offset: u64(8, 'where it begins in its file'),
});

/** Four bytes of padding follow in the structure that every implementation sends. */
export const inflightArea = layout('inflight', source('Inflight description'), 24, {
  mmapSize: u64(0, 'bytes of the log'),
  mmapOffset: u64(8, 'where it begins in its file'),
  queues: u16(16, 'queues that it covers'),
  queueSize: u16(18, 'entries of each'),
  padding: u32(20, 'zero'),
});
