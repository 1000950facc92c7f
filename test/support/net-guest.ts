import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { FeatureSet, type GuestBuffer, type GuestBus, VirtioDevice, type VirtQueue } from '../../src/guest/index.ts';
import { Slots } from '../../src/guest/slots.ts';
import { deviceIdOf } from '../../src/virtio/device-ids.ts';
import { decode, encode, layout, Malformed, u8, u16 } from '../../src/wire/layout.ts';
import {
  arpFrame,
  arpOf,
  broadcastMac,
  type Ethernet,
  ethernetOf,
  type Ipv4,
  type Mac,
  type UdpDatagram,
  udpFrame,
  udpOf,
} from './net-frames.ts';

/** Network device (virtio 1.3, 5.1.3). */
export const netFeature = { CSUM: 0, GUEST_CSUM: 1, CTRL_VQ: 17, MAC: 5, MRG_RXBUF: 15, MQ: 22 } as const;

/** With VERSION_1 it always has the last field. */
const netHeader = layout('virtio_net_hdr', 'virtio 1.3, 5.1.6', 12, {
  flags: u8(0, '1: a checksum is missing'),
  gsoType: u8(1, '0: one frame'),
  hdrLen: u16(2, 'bytes of the headers'),
  gsoSize: u16(4, 'bytes of a segment'),
  csumStart: u16(6, 'where the checksum begins'),
  csumOffset: u16(8, 'where it goes'),
  numBuffers: u16(10, 'receive buffers that the frame takes'),
});
const plainHeader = { flags: 0, gsoType: 0, hdrLen: 0, gsoSize: 0, csumStart: 0, csumOffset: 0, numBuffers: 0 };

const receiveBuffers = 32;
const receiveBytes = 2048;
const sendBuffers = 8;
const sendBytes = 16 * 1024;

interface Heard {
  arp: [Ethernet];
  udp: [UdpDatagram];
}

export interface NetAddresses {
  readonly mac: Mac;
  readonly ip: Ipv4;
}

/** Uses a network device as a small guest does: Ethernet, ARP, UDP (virtio 1.3, 5.1). For tests. */
export class NetGuest extends EventEmitter<Heard> {
  readonly device: VirtioDevice;
  readonly own: NetAddresses;
  readonly #receive: VirtQueue;
  readonly #send: VirtQueue;
  readonly #inOne: boolean;
  readonly #sendSlots: Slots<GuestBuffer>;
  /** Parts of a frame of which more is to come. */
  #parts: Uint8Array[] = [];
  #partsMissing = 0;
  /** Whether a frame is sent in one buffer, as Linux does where it can, and not in several. */
  wholeFrames = false;
  /** Frames that took more than one buffer. */
  merged = 0;
  /** What is wrong with what came. */
  problem: unknown;

  private constructor(
    device: VirtioDevice,
    own: NetAddresses,
    receive: VirtQueue,
    send: VirtQueue,
    framing: 'split' | 'in one',
  ) {
    super();
    this.device = device;
    this.own = own;
    this.#receive = receive;
    this.#send = send;
    this.#inOne = framing === 'in one';
    this.#sendSlots = new Slots(Array.from({ length: sendBuffers }, () => device.alloc(sendBytes)));
    device.on('failed', (error) => this.#sendSlots.end(error));
    for (let i = 0; i < receiveBuffers; i++) void this.#receiveInto(device.alloc(receiveBytes));
  }

  /**
   * @param features bits that it uses when they are offered
   * @param framing how many buffers a frame that is sent has: several, or one
   */
  static async open(
    bus: GuestBus,
    number: number,
    own: NetAddresses,
    features: readonly number[],
    framing: 'split' | 'in one' = 'split',
  ): Promise<NetGuest> {
    const options = { type: deviceIdOf('net')!, features: FeatureSet.of(...features) };
    const device = await VirtioDevice.open(bus, number, options);
    try {
      const receive = await device.addQueue(0);
      const send = await device.addQueue(1);
      await device.start();
      return new NetGuest(device, own, receive, send, framing);
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  async #receiveInto(buffer: GuestBuffer): Promise<void> {
    try {
      for (;;) {
        const written = await this.#receive.submit([], [buffer]);
        try {
          this.#take(buffer.bytes.slice(0, written));
        } catch (error) {
          this.problem ??= error;
        }
      }
    } catch {
      // The device has gone, which its owner knows.
    }
  }

  #take(bytes: Uint8Array): void {
    if (this.#partsMissing > 0) {
      this.#parts.push(bytes);
      this.#partsMissing -= 1;
    } else {
      const header = decode(netHeader, bytes, 0, bytes.length, 'ignore');
      assert.ok(!(header instanceof Malformed), 'a received buffer has a header');
      assert.deepEqual([header.flags & 1, header.gsoType], [0, 0], 'nothing is left to the driver');
      // Without MRG_RXBUF it should be 1 (5.1.6.4.1); passt leaves it alone, and drivers do not look.
      const buffers = this.device.features.has(netFeature.MRG_RXBUF) ? header.numBuffers : 1;
      assert.ok(buffers >= 1 && buffers <= receiveBuffers);
      this.#parts = [bytes.subarray(netHeader.size)];
      this.#partsMissing = buffers - 1;
      if (buffers > 1) this.merged += 1;
    }
    if (this.#partsMissing === 0) this.#frame(new Uint8Array(Buffer.concat(this.#parts)));
  }

  #frame(frame: Uint8Array): void {
    const ethernet = ethernetOf(frame);
    if (ethernet === undefined) return;
    const isOurs = Buffer.compare(ethernet.to, this.own.mac) === 0 || Buffer.compare(ethernet.to, broadcastMac) === 0;
    if (!isOurs) return;
    const arp = arpOf(ethernet);
    if (arp?.operation === 'request' && Buffer.compare(arp.targetIp, this.own.ip) === 0) {
      const answer = {
        senderMac: this.own.mac,
        senderIp: this.own.ip,
        targetMac: arp.senderMac,
        targetIp: arp.senderIp,
      };
      this.send(arpFrame(this.own.mac, arp.senderMac, { operation: 'answer', ...answer })).catch(() => {});
    }
    if (arp !== undefined) this.emit('arp', ethernet);
    const udp = udpOf(ethernet);
    if (udp !== undefined) this.emit('udp', udp);
  }

  async send(frame: Uint8Array): Promise<void> {
    if (this.#inOne) return await this.#sendInOne(frame);
    const slot = await this.#sendSlots.take();
    try {
      encode(netHeader, plainHeader, slot.bytes);
      slot.bytes.set(frame, netHeader.size);
      // 5.1.6.2: the framing is the driver's.
      const end = netHeader.size + frame.length;
      const middle = netHeader.size + Math.ceil(frame.length / 2);
      const cuts = this.wholeFrames ? [0, end] : [0, netHeader.size, middle, end];
      const parts = cuts.slice(1).map((cut, i) => slot.range(cuts[i]!, cut - cuts[i]!));
      assert.equal(await this.#send.submit(parts, []), 0);
    } finally {
      this.#sendSlots.give(slot);
    }
  }

  async #sendInOne(frame: Uint8Array): Promise<void> {
    const slot = await this.#sendSlots.take();
    try {
      encode(netHeader, plainHeader, slot.bytes);
      slot.bytes.set(frame, netHeader.size);
      assert.equal(await this.#send.submit([slot.range(0, netHeader.size + frame.length)], []), 0);
    } finally {
      this.#sendSlots.give(slot);
    }
  }

  async sendUdp(to: Mac, datagram: UdpDatagram): Promise<void> {
    await this.send(udpFrame(this.own.mac, to, datagram));
  }

  /** Asks who has an address, once. */
  async askFor(ip: Ipv4): Promise<void> {
    const { mac } = this.own;
    const asked = { senderMac: mac, senderIp: this.own.ip, targetMac: new Uint8Array(6), targetIp: ip };
    await this.send(arpFrame(mac, broadcastMac, { operation: 'request', ...asked }));
  }

  close(): Promise<void> {
    return this.device.close();
  }
}
