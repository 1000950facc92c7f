import { bytes, bytesTail, layout, u32, u32sTail, u64 } from '../wire/layout.ts';
import { type EventOf, emptyPayload, type RequestOf, type ResponseOf } from './tables.ts';

const src = (message: string) => `virtio-msg D5, Transport Messages, ${message}`;

const featureBlocks = (name: string) =>
  layout(
    name,
    src('GET_DEVICE_FEATURES, SET_DRIVER_FEATURES'),
    8,
    { blockIndex: u32(0, 'first 32-bit block; 0 covers bits 0..31'), blockCount: u32(4, 'blocks that follow') },
    u32sTail('blocks', 'blockCount', 'feature bits, zero past the end of what the device has'),
  );

const index = (name: string, doc: string) => layout(`${name} request`, src(name), 4, { index: u32(0, doc) });

/** All request/response transport messages; the driver side starts each. */
export const transportRequests = {
  GET_DEVICE_INFO: {
    id: 0x02,
    request: emptyPayload('GET_DEVICE_INFO request', src('GET_DEVICE_INFO')),
    response: layout('GET_DEVICE_INFO response', src('GET_DEVICE_INFO'), 44, {
      deviceId: u32(0, 'virtio device type'),
      vendorId: u32(4, 'vendor'),
      uuid: bytes(8, 16, 'device UUID, nil when there is none'),
      featureBlockCount: u32(24, '32-bit feature blocks the device has'),
      configSize: u32(28, 'configuration space, bytes'),
      maxVirtqueues: u32(32, 'virtqueues, administration queues included'),
      adminStart: u32(36, 'first administration virtqueue'),
      adminCount: u32(40, 'administration virtqueues'),
    }),
  },
  GET_DEVICE_FEATURES: {
    id: 0x03,
    request: layout('GET_DEVICE_FEATURES request', src('GET_DEVICE_FEATURES'), 8, {
      blockIndex: u32(0, 'first block asked for'),
      blockCount: u32(4, 'blocks asked for'),
    }),
    response: featureBlocks('GET_DEVICE_FEATURES response'),
  },
  SET_DRIVER_FEATURES: {
    id: 0x04,
    request: featureBlocks('SET_DRIVER_FEATURES request'),
    response: emptyPayload('SET_DRIVER_FEATURES response', src('SET_DRIVER_FEATURES')),
  },
  GET_CONFIG: {
    id: 0x05,
    request: layout('GET_CONFIG request', src('GET_CONFIG'), 8, {
      offset: u32(0, 'byte offset into the configuration space'),
      length: u32(4, 'bytes asked for; 0 reads the generation only'),
    }),
    response: layout(
      'GET_CONFIG response',
      src('GET_CONFIG'),
      12,
      {
        generation: u32(0, 'current generation count'),
        offset: u32(4, 'as asked'),
        length: u32(8, 'bytes that follow'),
      },
      bytesTail('data', 'length', 'configuration bytes'),
    ),
  },
  SET_CONFIG: {
    id: 0x06,
    request: layout(
      'SET_CONFIG request',
      src('SET_CONFIG'),
      12,
      {
        generation: u32(0, "the driver's view; 0 unless the strict profile is negotiated"),
        offset: u32(4, 'byte offset into the configuration space'),
        length: u32(8, 'bytes that follow; 0 is a no-op'),
      },
      bytesTail('data', 'length', 'bytes to write'),
    ),
    response: layout(
      'SET_CONFIG response',
      src('SET_CONFIG'),
      12,
      {
        generation: u32(0, 'resulting generation count'),
        offset: u32(4, 'as asked'),
        length: u32(8, 'as asked when all bytes were applied, else 0'),
      },
      bytesTail('data', 'length', 'the bytes applied'),
    ),
  },
  GET_DEVICE_STATUS: {
    id: 0x07,
    request: emptyPayload('GET_DEVICE_STATUS request', src('GET_DEVICE_STATUS')),
    response: layout('GET_DEVICE_STATUS response', src('GET_DEVICE_STATUS'), 4, { status: u32(0, 'device status') }),
  },
  SET_DEVICE_STATUS: {
    id: 0x08,
    request: layout('SET_DEVICE_STATUS request', src('SET_DEVICE_STATUS'), 4, {
      status: u32(0, 'wanted status; 0 asks for a reset'),
    }),
    response: layout('SET_DEVICE_STATUS response', src('SET_DEVICE_STATUS'), 4, {
      status: u32(0, 'resulting status; 0 only when a reset is complete'),
    }),
  },
  GET_VQUEUE: {
    id: 0x09,
    request: index('GET_VQUEUE', 'virtqueue index'),
    response: layout('GET_VQUEUE response', src('GET_VQUEUE'), 40, {
      index: u32(0, 'as asked'),
      maxSize: u32(4, 'largest size; 0 when there is no such queue'),
      size: u32(8, 'current size; 0 when not configured'),
      flags: u32(12, 'bit 0: enabled'),
      descAddr: u64(16, 'descriptor area, bus address'),
      driverAddr: u64(24, 'driver area, bus address'),
      deviceAddr: u64(32, 'device area, bus address'),
    }),
  },
  SET_VQUEUE: {
    id: 0x0a,
    request: layout('SET_VQUEUE request', src('SET_VQUEUE'), 40, {
      index: u32(0, 'virtqueue index'),
      flags: u32(
        4,
        'bits 1:0 operation (0 stay disabled, 1 enable, 2 keep); bits 2..5 ignore size, desc, driver, device',
      ),
      size: u32(8, 'descriptors'),
      reserved: u32(12, 'zero'),
      descAddr: u64(16, 'descriptor area, bus address'),
      driverAddr: u64(24, 'driver area, bus address'),
      deviceAddr: u64(32, 'device area, bus address'),
    }),
    response: emptyPayload('SET_VQUEUE response', src('SET_VQUEUE')),
  },
  RESET_VQUEUE: {
    id: 0x0b,
    request: index('RESET_VQUEUE', 'virtqueue index'),
    response: emptyPayload('RESET_VQUEUE response', src('RESET_VQUEUE')),
  },
  GET_SHM: {
    id: 0x0c,
    request: index('GET_SHM', 'shared memory id'),
    response: layout('GET_SHM response', src('GET_SHM'), 24, {
      index: u32(0, 'shared memory id, as asked'),
      reserved: u32(4, 'zero'),
      length: u64(8, 'bytes; 0 when there is no such region'),
      address: u64(16, 'bus address'),
    }),
  },
} as const;

/** One-way transport messages. */
export const transportEvents = {
  EVENT_CONFIG: {
    id: 0x40,
    event: layout(
      'EVENT_CONFIG',
      src('EVENT_CONFIG'),
      16,
      {
        status: u32(0, 'device status'),
        generation: u32(4, 'generation count'),
        offset: u32(8, 'first changed byte; 0 with length 0 means anything may have changed'),
        length: u32(12, 'changed bytes that follow'),
      },
      bytesTail('data', 'length', 'the changed bytes'),
    ),
  },
  EVENT_AVAIL: {
    id: 0x41,
    event: layout('EVENT_AVAIL', src('EVENT_AVAIL'), 8, {
      index: u32(0, 'virtqueue index'),
      next: u32(4, 'next offset with NOTIFICATION_DATA (bit 31: wrap counter), else 0'),
    }),
  },
  EVENT_USED: {
    id: 0x42,
    event: layout('EVENT_USED', src('EVENT_USED'), 4, { index: u32(0, 'virtqueue index') }),
  },
} as const;

export type TransportRequest = RequestOf<typeof transportRequests>;
export type TransportResponse = ResponseOf<typeof transportRequests>;
export type TransportEvent = EventOf<typeof transportEvents>;

/** SET_VQUEUE flags. */
export const setVqueueFlags = {
  operationMask: 3,
  stayDisabled: 0,
  enable: 1,
  keep: 2,
  ignoreSize: 1 << 2,
  ignoreDesc: 1 << 3,
  ignoreDriver: 1 << 4,
  ignoreDevice: 1 << 5,
  definedMask: 0x3f,
} as const;
export const vqueueEnabled = 1;

/** Configuration bytes that fit into one GET_CONFIG or SET_CONFIG message. */
export const configBytesPerMessage = (maxMessageSize: number): number => maxMessageSize - 20;
