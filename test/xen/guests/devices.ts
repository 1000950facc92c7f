import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, connect, type GuestBus, VmsgError } from '../../../src/guest/index.ts';
import { passtNetwork } from '../../support/backend-programs.ts';
import { FsGuest, type FsNode } from '../../support/fs-guest.ts';
import { fuseRoot } from '../../support/fuse-wire.ts';
import { arpOf, ipv4, type UdpDatagram } from '../../support/net-frames.ts';
import { NetGuest, netFeature } from '../../support/net-guest.ts';
import { VsockGuest } from '../../support/vsock-guest.ts';
import { plainContent } from '../support/content.ts';
import { type BusOrder, openBus, orderOf, say, untilStopped } from './bus.ts';

/** What is done with a device; `device` is its number. */
export type Work =
  /** Writes seeded bytes, flushes, reads them back. The result is the SHA-256 of what was read. */
  | { readonly kind: 'blk'; readonly device: number; readonly bytes: number }
  /** Reads a whole tree. The result is a line for each of its entries. */
  | { readonly kind: 'fs'; readonly device: number }
  /** Asks for the address of the gateway; exchanges datagrams with a port of dom0 that answers with inverted bytes. */
  | { readonly kind: 'net'; readonly device: number; readonly port: number }
  /** Sends bytes to a port of dom0, which answers with inverted ones. */
  | { readonly kind: 'vsock'; readonly device: number; readonly port: number; readonly bytes: number };

/** Does its work once, or over and over until SIGTERM, then also with a device that leaves and comes back. */
export interface DevicesOrder extends BusOrder {
  /** Socket of a loopback bus; without it the bus is Xen's. */
  readonly path?: string;
  readonly work: readonly Work[];
  readonly again?: boolean;
}

export type DevicesLine =
  /** `run` counts from 1 for each kind. */
  | { readonly type: 'done'; readonly kind: Work['kind']; readonly run: number; readonly result: readonly string[] }
  /** The device has failed; the work is begun anew when it is back. */
  | { readonly type: 'left'; readonly kind: Work['kind']; readonly code: string }
  /** A device that is there cannot be used yet; that is tried again. */
  | { readonly type: 'refused'; readonly kind: Work['kind']; readonly why: string };

type WorkOf<K extends Work['kind']> = Extract<Work, { readonly kind: K }>;
/** Does the work once more. */
interface Worker {
  once(run: number): Promise<readonly string[]>;
  close(): Promise<void>;
}

const transferBytes = 128 * 1024;
const returnMs = 100;
/** Four devices share a processor with their programs. */
const restMs = 200;
const resendMs = 500;
const resends = 60;
const datagramBytes = [1, 64, 1400];
const guestPort = 40_000;
const guestMac = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const inverted = (bytes: Uint8Array): Uint8Array => bytes.map((byte) => byte ^ 0xff);

async function disk(bus: GuestBus, { device, bytes }: WorkOf<'blk'>): Promise<Worker> {
  const blk = await BlkDriver.open(bus, device, { depth: 4, transferBytes });
  return {
    once: async (run) => {
      await blk.write(0, plainContent(run, bytes));
      await blk.flush();
      return [sha256(await blk.read(0, bytes))];
    },
    close: () => blk.close(),
  };
}

async function tree(bus: GuestBus, { device }: WorkOf<'fs'>): Promise<Worker> {
  const fs = await FsGuest.open(bus, device);
  const list = async (node: FsNode, path: string): Promise<string[]> => {
    const own = `${path} ${node.mode.toString(8)}`;
    const type = node.mode >>> 12;
    if (type === 10) return [`${own} ${await fs.readLink(node.node)}`];
    if (type !== 4) return [`${own} ${sha256(await fs.readFile(node.node))}`];
    const lines = [own];
    for (const { name } of await fs.entries(node.node)) {
      lines.push(...(await list(await fs.lookup(node.node, name), `${path}/${name}`)));
    }
    return lines;
  };
  return {
    once: () => fs.attributes(fuseRoot).then((root) => list(root, '')),
    close: () => fs.close(),
  };
}

async function network(bus: GuestBus, { device, port }: WorkOf<'net'>): Promise<Worker> {
  const own = { mac: guestMac, ip: ipv4(passtNetwork.guest) };
  const gateway = ipv4(passtNetwork.gateway);
  const net = await NetGuest.open(bus, device, own, [netFeature.MRG_RXBUF]);
  // passt ends when it gets one in two.
  net.wholeFrames = true;
  let failure: Error | undefined;
  net.device.on('failed', (error) => {
    failure = error;
  });
  /** Frames may be lost: asks again. */
  const ask = async <T>(send: () => Promise<void>, answer: Promise<T>): Promise<T> => {
    for (let i = 0; i < resends; i++) {
      await send();
      const found = await Promise.race([answer, sleep(resendMs, undefined)]);
      if (failure !== undefined) throw failure;
      assert.equal(net.problem, undefined);
      if (found !== undefined) return found;
    }
    throw new Error('no answer comes through the network');
  };
  const echo = async (mac: Uint8Array, data: Uint8Array): Promise<void> => {
    const expected = inverted(data);
    const answer = new Promise<UdpDatagram>((resolve) => {
      net.on('udp', (datagram) => {
        if (Buffer.compare(datagram.data, expected) === 0) resolve(datagram);
      });
    });
    const datagram = { from: { ip: own.ip, port: guestPort }, to: { ip: gateway, port }, data };
    const got = await ask(() => net.sendUdp(mac, datagram), answer);
    net.removeAllListeners('udp');
    assert.deepEqual([got.from, got.to], [datagram.to, datagram.from]);
  };
  return {
    once: async (run) => {
      const heard = once(net, 'arp').then(([frame]) => arpOf(frame));
      const answer = await ask(() => net.askFor(gateway), heard);
      assert.equal(answer?.operation, 'answer');
      for (const size of datagramBytes) await echo(answer.senderMac, plainContent(run, 2048).subarray(0, size));
      return datagramBytes.map(String);
    },
    close: () => net.close(),
  };
}

async function socket(bus: GuestBus, { device, port, bytes }: WorkOf<'vsock'>): Promise<Worker> {
  const guest = await VsockGuest.open(bus, device);
  return {
    once: async (run) => {
      const stream = await guest.connect(port);
      const data = plainContent(run, bytes);
      const [answer] = await Promise.all([stream.readAll(bytes), stream.write(data)]);
      assert.equal(Buffer.compare(answer, inverted(data)), 0, 'every byte came back');
      await stream.end();
      assert.equal(guest.problem, undefined);
      return [sha256(answer)];
    },
    close: () => guest.close(),
  };
}

function openDevice(bus: GuestBus, work: Work): Promise<Worker> {
  if (work.kind === 'blk') return disk(bus, work);
  if (work.kind === 'fs') return tree(bus, work);
  return work.kind === 'net' ? network(bus, work) : socket(bus, work);
}

const line = (value: DevicesLine): void => say(value);
const order = orderOf<DevicesOrder>();
const bus = order.path === undefined ? await openBus(order) : await connect({ path: order.path });
let going = true;

/** Runs are counted over all the times that the device was there. */
async function use(work: Work, first: number): Promise<number> {
  let run = first;
  const worker = await openDevice(bus, work);
  try {
    do {
      const result = await worker.once(run);
      line({ type: 'done', kind: work.kind, run, result });
      run += 1;
      if (order.again) await sleep(restMs);
    } while (order.again && going);
  } catch (error) {
    if (!order.again || !(error instanceof VmsgError)) throw error;
    line({ type: 'left', kind: work.kind, code: error.code });
  } finally {
    await worker.close();
  }
  return run;
}

async function follow(work: Work): Promise<void> {
  let run = 1;
  do {
    while (going && !(await bus.devices()).includes(work.device)) await sleep(returnMs);
    if (!going) return;
    run = await use(work, run).catch(async (error) => {
      // Perhaps it has left again.
      if (!order.again || !(error instanceof VmsgError)) throw error;
      line({ type: 'refused', kind: work.kind, why: error.message });
      await sleep(returnMs);
      return run;
    });
  } while (order.again && going);
}

const stopped = untilStopped().then(() => {
  going = false;
});
await Promise.all(order.work.map(follow));
await stopped;
bus.close();
