import { readU16, writeU16 } from '../wire/bytes.ts';
import { type Decoded, layout, u8, u16 } from '../wire/layout.ts';

export const messageHeader = layout('message header', 'virtio-msg D5, Common Message Format', 8, {
  type: u8(0, 'bit 0: response; bit 1: bus message; bits 2..7 zero, ignored on receive'),
  id: u8(1, 'message id; bit 6: event; bit 7: implementation-defined'),
  deviceNumber: u16(2, 'device number; 0 in bus messages'),
  token: u16(4, 'correlates a response with its request; 0 in events'),
  size: u16(6, 'header and payload, bytes'),
});
export type MessageHeader = Decoded<typeof messageHeader>;

export const headerBytes = messageHeader.size;
export const typeResponse = 1;
export const typeBus = 2;
export const idEvent = 0x40;
export const idImplementationDefined = 0x80;

const at = messageHeader.at;
/** Accessors for routing; they do not validate. */
export const headerType = (frame: Uint8Array): number => frame[at.type]! & 3;
export const headerId = (frame: Uint8Array): number => frame[at.id]!;
export const headerDeviceNumber = (frame: Uint8Array): number => readU16(frame, at.deviceNumber);
export const headerToken = (frame: Uint8Array): number => readU16(frame, at.token);
export const headerSize = (frame: Uint8Array): number => readU16(frame, at.size);

/** The first bytes of a frame, at least `headerBytes` long; does not validate. Every message is read so: no loop. */
export const readHeader = (frame: Uint8Array): MessageHeader => ({
  type: frame[at.type]!,
  id: frame[at.id]!,
  deviceNumber: readU16(frame, at.deviceNumber),
  token: readU16(frame, at.token),
  size: readU16(frame, at.size),
});

export function writeHeader(header: MessageHeader, frame: Uint8Array): void {
  frame[at.type] = header.type;
  frame[at.id] = header.id;
  writeU16(frame, at.deviceNumber, header.deviceNumber);
  writeU16(frame, at.token, header.token);
  writeU16(frame, at.size, header.size);
}
