import assert from 'node:assert/strict';

/** Six bytes. */
export type Mac = Uint8Array;
/** Four bytes. */
export type Ipv4 = Uint8Array;

export const broadcastMac: Mac = new Uint8Array(6).fill(0xff);
export const ipv4 = (text: string): Ipv4 => Uint8Array.from(text.split('.'), Number);

const etherType = { ipv4: 0x0800, arp: 0x0806 } as const;
const etherBytes = 14;
const ipBytes = 20;
const udpBytes = 8;
const udpProtocol = 17;

/** A frame without its checksum at the end. */
export interface Ethernet {
  readonly to: Mac;
  readonly from: Mac;
  readonly type: number;
  readonly payload: Uint8Array;
}

export interface Arp {
  readonly operation: 'request' | 'answer';
  readonly senderMac: Mac;
  readonly senderIp: Ipv4;
  readonly targetMac: Mac;
  readonly targetIp: Ipv4;
}

export interface UdpDatagram {
  readonly from: { readonly ip: Ipv4; readonly port: number };
  readonly to: { readonly ip: Ipv4; readonly port: number };
  readonly data: Uint8Array;
}

const u16 = (...values: readonly number[]): Uint8Array =>
  Uint8Array.from(values.flatMap((value) => [value >>> 8, value & 0xff]));
const u16At = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;
const join = (...parts: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));

/** The checksum of the Internet protocols (RFC 1071) over several parts; only the last one may have an odd length. */
function checksum(...parts: readonly Uint8Array[]): number {
  let sum = 0;
  for (const part of parts) {
    for (let at = 0; at < part.length; at += 2) sum += (part[at]! << 8) | (part[at + 1] ?? 0);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** @returns undefined when it is too short for a frame */
export function ethernetOf(frame: Uint8Array): Ethernet | undefined {
  if (frame.length < etherBytes) return undefined;
  const [to, from] = [frame.slice(0, 6), frame.slice(6, 12)];
  return { to, from, type: u16At(frame, 12), payload: frame.slice(etherBytes) };
}

/** RFC 826, for IPv4 over Ethernet. */
export function arpFrame(from: Mac, to: Mac, arp: Arp): Uint8Array {
  const kind = u16(1, etherType.ipv4, 0x0604, arp.operation === 'request' ? 1 : 2);
  return join(to, from, u16(etherType.arp), kind, arp.senderMac, arp.senderIp, arp.targetMac, arp.targetIp);
}

/** @returns undefined for what is no ARP */
export function arpOf({ type, payload }: Ethernet): Arp | undefined {
  if (type !== etherType.arp || payload.length < 28) return undefined;
  const operation = u16At(payload, 6) === 1 ? 'request' : 'answer';
  const [senderMac, senderIp] = [payload.slice(8, 14), payload.slice(14, 18)];
  return { operation, senderMac, senderIp, targetMac: payload.slice(18, 24), targetIp: payload.slice(24, 28) };
}

/** UDP in IPv4 in Ethernet, in one piece. */
export function udpFrame(from: Mac, to: Mac, datagram: UdpDatagram): Uint8Array {
  const length = udpBytes + datagram.data.length;
  const pseudo = join(datagram.from.ip, datagram.to.ip, u16(udpProtocol, length));
  const udp = u16(datagram.from.port, datagram.to.port, length, 0);
  // RFC 768: zero would be no checksum at all.
  udp.set(u16(checksum(pseudo, udp, datagram.data) || 0xffff), 6);
  const ip = join(u16(0x4500, ipBytes + length, 0, 0, (64 << 8) | udpProtocol, 0), datagram.from.ip, datagram.to.ip);
  ip.set(u16(checksum(ip)), 10);
  return join(to, from, u16(etherType.ipv4), ip, udp, datagram.data);
}

/** Checks what the frame says of itself. @returns undefined for what is no UDP in IPv4 */
export function udpOf({ type, payload }: Ethernet): UdpDatagram | undefined {
  if (type !== etherType.ipv4 || payload.length < ipBytes + udpBytes || payload[9] !== udpProtocol) return undefined;
  assert.equal(payload[0], 0x45, 'an IPv4 header without options');
  assert.equal(checksum(payload.subarray(0, ipBytes)), 0, 'the checksum of the IPv4 header');
  const udp = payload.subarray(ipBytes, u16At(payload, 2));
  assert.equal(u16At(udp, 4), udp.length, 'the length of the UDP header');
  const [from, to] = [payload.slice(12, 16), payload.slice(16, 20)];
  if (u16At(udp, 6) !== 0) assert.equal(checksum(from, to, u16(udpProtocol, udp.length), udp), 0, 'the UDP checksum');
  return {
    from: { ip: from, port: u16At(udp, 0) },
    to: { ip: to, port: u16At(udp, 2) },
    data: udp.slice(udpBytes),
  };
}
