import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { createServer, connect as netConnect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, type GuestBus } from '../../src/guest/index.ts';
import { sectorBytes } from '../../src/virtio/blk.ts';
import { passtNetwork } from '../support/backend-programs.ts';
import { FsGuest, type FsNode } from '../support/fs-guest.ts';
import { fuseRoot } from '../support/fuse-wire.ts';
import { arpOf, ipv4, type UdpDatagram } from '../support/net-frames.ts';
import { NetGuest, netFeature } from '../support/net-guest.ts';
import { VsockGuest, type VsockStream } from '../support/vsock-guest.ts';
import type { Job } from './contract.ts';

const chunkBytes = 64 * 1024;

/** Bytes that are others for every seed. */
export function pattern(length: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e37_79b1) ^ Math.imul(seed + 1, 0x85eb_ca6b);
  return new Uint8Array(words.buffer, 0, length);
}

const mustEqual = (found: Uint8Array, expected: Uint8Array, what: string): void =>
  assert.equal(Buffer.compare(found, expected), 0, what);

export interface DiskJobOptions {
  /** Whether the host has the data at this offset, in bytes. */
  readonly isStored: (offset: number, data: Uint8Array) => boolean;
  /** Chooses a disk that completes only what is durable. */
  readonly writesThrough?: boolean;
}

/** Writes, flushes and reads back. */
export async function blkJob(bus: GuestBus, number: number, options: DiskJobOptions): Promise<Job> {
  const { isStored, writesThrough = false } = options;
  const blk = await BlkDriver.open(bus, number, { depth: 8, queues: 2, transferBytes: chunkBytes });
  if (writesThrough) await blk.setWriteback(false);
  if (writesThrough) assert.equal(blk.writeback, false);
  let seed = 0;
  return {
    run: async () => {
      seed += 1;
      const chunks = Math.floor(blk.capacityBytes / chunkBytes);
      const offset = ((seed * 5) % (chunks - 5)) * chunkBytes;
      const data = pattern(5 * chunkBytes, seed);
      await blk.write(offset / sectorBytes, data);
      await blk.flush();
      for (let at = 0; at < data.length; at += chunkBytes) {
        assert.ok(isStored(offset + at, data.subarray(at, at + chunkBytes)), 'the host has what was flushed');
      }
      mustEqual(await blk.read(offset / sectorBytes, data.length), data, 'what was written is read');
      await blk.writeZeroes(offset / sectorBytes, chunkBytes);
      const after = new Uint8Array(data);
      after.fill(0, 0, chunkBytes);
      mustEqual(await blk.read(offset / sectorBytes, data.length), after, 'zeroes were written');
    },
    close: () => blk.close(),
  };
}

/** Compares a whole tree with the host's, then writes to it. @param directory that is shared */
export async function fsJob(bus: GuestBus, number: number, directory: string): Promise<Job> {
  const fs = await FsGuest.open(bus, number);
  let seed = 0;
  const compare = async (node: FsNode, path: string): Promise<void> => {
    const host = lstatSync(path);
    assert.deepEqual([node.mode, node.size], [host.mode, host.size], path);
    assert.deepEqual(await fs.attributes(node.node), node);
    if (host.isFile()) mustEqual(await fs.readFile(node.node), readFileSync(path), path);
    else if (host.isSymbolicLink()) assert.equal(await fs.readLink(node.node), readlinkSync(path));
    else {
      const entries = await fs.entries(node.node);
      assert.deepEqual(new Set(entries.map(({ name }) => name)), new Set(readdirSync(path)));
      for (const { name, type } of entries) {
        const child = await fs.lookup(node.node, name);
        assert.equal(type, child.mode >>> 12);
        await compare(child, join(path, name));
        await fs.forget(child.node);
      }
    }
  };
  return {
    run: async () => {
      seed += 1;
      await compare(await fs.attributes(fuseRoot), directory);
      const name = `from the guest ${randomUUID()}`;
      const content = pattern(150_001, seed);
      const made = await fs.makeDirectory(fuseRoot, name, 0o750);
      const file = await fs.writeFile(made.node, 'file', 0o640, content);
      assert.equal(lstatSync(join(directory, name)).mode & 0o7777, 0o750);
      assert.equal(lstatSync(join(directory, name, 'file')).mode & 0o7777, 0o640);
      mustEqual(readFileSync(join(directory, name, 'file')), content, 'the host has what the guest wrote');
      mustEqual(await fs.readFile(file.node), content, 'the guest reads what it wrote');
      await fs.unlink(made.node, 'file');
      assert.deepEqual(readdirSync(join(directory, name)), []);
      await assert.rejects(fs.lookup(made.node, 'file'), { errno: -2 });
      await fs.removeDirectory(fuseRoot, name);
      assert.ok(!readdirSync(directory).includes(name));
    },
    close: () => fs.close(),
  };
}

const guestMac = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);
const guestPort = 40_000;
const plainSizes = [1, 18, 1400];
/** A frame takes several receive buffers then. */
const mergedSizes = [9000];
const resendMs = 200;
const resends = 100;

/** A program of the host that answers datagrams. */
async function echoingHost() {
  const host = createSocket('udp4');
  const heard: Uint8Array[] = [];
  host.on('message', (data, from) => {
    heard.push(data);
    // Not what was sent: the sums differ.
    host.send(
      data.map((byte) => byte ^ 0xff),
      from.port,
      from.address,
    );
  });
  host.bind(0, '127.0.0.1');
  await once(host, 'listening');
  // A job that a guest left is not closed.
  host.unref();
  return { host, heard };
}

/** Asks for the address of the gateway and exchanges datagrams with a program of the host behind it. */
export async function netJob(
  bus: GuestBus,
  number: number,
  features: readonly number[],
  framing: 'split' | 'in one' = 'split',
): Promise<Job> {
  const { host, heard } = await echoingHost();
  const own = { mac: guestMac, ip: ipv4(passtNetwork.guest) };
  const net = await NetGuest.open(bus, number, own, features, framing).catch((error) => {
    host.close();
    throw error;
  });
  const gateway = { mac: Buffer.from(passtNetwork.mac.replaceAll(':', ''), 'hex'), ip: ipv4(passtNetwork.gateway) };
  const merges = net.device.features.has(netFeature.MRG_RXBUF);
  let seed = 0;
  /** Frames may be lost: asks again. */
  const ask = async <T>(send: () => Promise<void>, answer: Promise<T>): Promise<T> => {
    for (let i = 0; i < resends; i++) {
      await send();
      const found = await Promise.race([answer, sleep(resendMs, undefined)]);
      if (net.problem !== undefined) throw net.problem;
      if (found !== undefined) return found;
    }
    throw new Error('no answer comes through the network');
  };
  const echo = async (size: number): Promise<void> => {
    seed += 1;
    const data = pattern(size, seed);
    const expected = data.map((byte) => byte ^ 0xff);
    const answer = new Promise<UdpDatagram>((resolve) => {
      net.on('udp', (datagram) => {
        if (Buffer.compare(datagram.data, expected) === 0) resolve(datagram);
      });
    });
    const [from, to] = [
      { ip: own.ip, port: guestPort },
      { ip: gateway.ip, port: host.address().port },
    ];
    const got = await ask(() => net.sendUdp(gateway.mac, { from, to, data }), answer);
    net.removeAllListeners('udp');
    assert.deepEqual([got.from, got.to], [to, from]);
    assert.ok(heard.some((each) => Buffer.compare(each, data) === 0));
  };
  return {
    run: async () => {
      const arp = once(net, 'arp').then(([frame]) => arpOf(frame));
      const answer = await ask(() => net.askFor(gateway.ip), arp);
      assert.deepEqual([answer?.operation, Buffer.from(answer!.senderMac)], ['answer', gateway.mac]);
      for (const size of plainSizes) await echo(size);
      const before = net.merged;
      for (const size of merges ? mergedSizes : []) await echo(size);
      assert.equal(net.merged > before, merges);
      heard.splice(0);
    },
    close: async () => {
      host.close();
      await net.close();
    },
  };
}

const hostPort = 5000;
const listeningPort = 6000;
/** More than the buffers on the way take. */
const streamBytes = 768 * 1024;

/** Bytes in both directions over a connection that the guest has made, then over one that a program of the host has. */
export async function vsockJob(bus: GuestBus, number: number, hostSocket: string): Promise<Job> {
  const guest = await VsockGuest.open(bus, number);
  let seed = 0;
  /** Both at once: neither side may wait for the other. */
  const exchange = async (stream: VsockStream, host: Socket): Promise<void> => {
    seed += 1;
    const [up, down] = [pattern(streamBytes, 2 * seed), pattern(streamBytes, 2 * seed + 1)];
    host.write(down);
    const waits = stream.creditWaits;
    const written = stream.write(up);
    await Promise.race([written, stream.waited(waits + 1)]);
    const [found, heard] = await Promise.all([stream.readAll(down.length), readBytes(host, up.length), written]);
    mustEqual(found, down, 'what the host sent');
    mustEqual(heard, up, 'what the guest sent');
    assert.ok(stream.creditWaits > waits, 'it has waited for room');
  };
  const fromGuest = async (): Promise<void> => {
    const server = createServer();
    server.listen(`${hostSocket}_${hostPort}`);
    await once(server, 'listening');
    try {
      const accepted = once(server, 'connection') as Promise<[Socket]>;
      const stream = await guest.connect(hostPort);
      const [host] = await accepted;
      host.on('error', () => {});
      await exchange(stream, host);
      const closed = once(host, 'close');
      await stream.end();
      await closed;
    } finally {
      server.close();
    }
  };
  const fromHost = async (): Promise<void> => {
    const accepted = guest.accept(listeningPort);
    const host = netConnect(hostSocket);
    await once(host, 'connect');
    host.on('error', () => {});
    host.write(`CONNECT ${listeningPort}\n`);
    const stream = await Promise.race([accepted, guest.failed]);
    const line = await readLine(host);
    assert.match(line, /^OK \d+$/);
    await exchange(stream, host);
    host.end();
    assert.equal(await stream.read(), undefined);
    await stream.acknowledgeEnd();
  };
  return {
    run: async () => {
      await fromGuest();
      await fromHost();
      assert.equal(guest.problem, undefined);
    },
    close: () => guest.close(),
  };
}

async function readBytes(from: Socket, length: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let missing = length;
  for await (const part of from.iterator({ destroyOnReturn: false })) {
    parts.push(part as Uint8Array);
    missing -= (part as Uint8Array).length;
    if (missing <= 0) break;
  }
  assert.equal(missing, 0);
  return Buffer.concat(parts);
}

async function readLine(from: Socket): Promise<string> {
  let text = '';
  while (!text.endsWith('\n')) {
    const byte = from.read(1) as Buffer | null;
    if (byte === null) await once(from, 'readable');
    else text += byte.toString('latin1');
  }
  return text.slice(0, -1);
}
