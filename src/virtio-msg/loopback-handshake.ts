import { bytes, bytesTail, type Decoded, i32, layout, u16, u32, u64 } from '../wire/layout.ts';

/** Packets on the Unix socket of a loopback bus (SOCK_SEQPACKET, one packet a message). */
const src = (name: string) => `docs/protocol/loopback.md, ${name}`;
export const handshakeMagic = 0x47534d56;
export const handshakeVersion = 1;
export const packetType = { hello: 1, welcome: 2, rings: 3, ready: 4, refused: 5, descriptors: 6 } as const;

const head = {
  magic: u32(0, '0x47534d56, the letters VMSG'),
  version: u16(4, 'HELLO: highest version the guest speaks; after it: the version in use'),
  type: u16(6, 'packet type'),
};

export const packetHead = layout('packet head', src('Packets'), 8, head);

export const hello = layout('HELLO', src('HELLO'), 48, {
  ...head,
  features: u32(8, 'bit 0: sleep words; bit 1: QUEUE_NOTIFY'),
  dialects: u32(12, 'bit n: the guest speaks dialect Dn'),
  maxMessageSize: u16(16, 'largest message the guest handles, bytes'),
  role: u16(18, 'what the guest does on the bus: 0 it uses devices, 1 it serves devices'),
  reserved: u32(20, 'zero'),
  resumeEpoch: u64(24, 'epoch to resume, or 0'),
  resumeToken: bytes(32, 16, 'token of that epoch, or zeros'),
});

export const welcome = layout('WELCOME', src('WELCOME'), 64, {
  ...head,
  features: u32(8, 'features both sides have'),
  dialect: u16(12, 'n: messages are of dialect Dn'),
  maxMessageSize: u16(14, 'largest message either side may send, bytes'),
  slotSize: u32(16, 'bytes of a ring slot'),
  ringMaxBytes: u32(20, 'largest ring the service takes, bytes'),
  revision: u32(24, 'virtio-msg transport revision'),
  transportFeatures: u32(28, 'virtio-msg transport features'),
  epoch: u64(32, 'epoch of this connection'),
  token: bytes(40, 16, 'to be presented to resume this epoch after the service restarted'),
  domid: u32(56, 'number of the domain'),
  flags: u32(60, 'bit 0: the devices kept their state (resumed)'),
});

export const rings = layout('RINGS', src('RINGS'), 40, {
  ...head,
  toServiceOffset: u64(8, 'ring from guest to service: where it starts in the memfd, a multiple of 4096'),
  toGuestOffset: u64(16, 'ring from service to guest: where it starts in the memfd, a multiple of 4096'),
  toServiceBytes: u32(24, 'size of the ring to the service, a multiple of 4, at most ringMaxBytes'),
  toGuestBytes: u32(28, 'size of the ring to the guest, likewise'),
  reserved: u64(32, 'zero'),
});

export const ready = layout('READY', src('READY'), 8, head);

export const refused = layout(
  'REFUSED',
  src('REFUSED'),
  16,
  { ...head, errno: i32(8, 'a Linux errno, positive'), reasonLength: u32(12, 'bytes of the reason') },
  bytesTail('reason', 'reasonLength', 'UTF-8, for a person'),
);

export const descriptors = layout('DESCRIPTORS', src('DESCRIPTORS'), 16, {
  ...head,
  first: u32(8, 'index of the first attached descriptor'),
  count: u32(12, 'attached descriptors, 1..8; the second one has index first + 1, and so on, modulo 2^32'),
});

export const handshakeFeatures = { sleepWords: 1, queueNotify: 2 } as const;
export const welcomeResumed = 1;
export const guestRole = { driver: 0, device: 1 } as const;

export type Hello = Decoded<typeof hello>;
export type Welcome = Decoded<typeof welcome>;
export type Rings = Decoded<typeof rings>;

/** The head of a packet that this version sends. */
export const headOf = (type: number) => ({ magic: handshakeMagic, version: handshakeVersion, type });
