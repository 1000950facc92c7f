import { createHash } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { passtNetwork } from '../../support/backend-programs.ts';
import type { Work } from '../guests/devices.ts';
import { plainContent } from './content.ts';

export const kinds = ['blk', 'fs', 'net', 'vsock'] as const;
export type Kind = Work['kind'];

const diskBytes = 4 * 1024 * 1024;
const writtenBytes = 1024 * 1024;
const fileBytes = 128 * 1024;
const streamBytes = 128 * 1024;
const vsockPort = 5000;
const guestCid = 42;

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const inverted = (bytes: Uint8Array): Uint8Array => bytes.map((byte) => byte ^ 0xff);

/** What is behind the devices of the four programs in dom0, and what guests are told to do with them. */
export class Hosts {
  readonly #image: string;
  readonly #tree: string;
  readonly #hostSocket: string;
  readonly #udp: Socket = createSocket('udp4');
  readonly #server: Server;

  /** @param directory that exists */
  constructor(directory: string) {
    this.#image = join(directory, 'disk.img');
    this.#tree = join(directory, 'shared');
    this.#hostSocket = join(directory, 'host');
    writeFileSync(this.#image, Buffer.alloc(diskBytes));
    makeTree(this.#tree);
    this.#udp.on('message', (data, { port, address }) => this.#udp.send(inverted(data), port, address));
    this.#server = createServer({ allowHalfOpen: true }, (socket) => {
      // A program that is killed takes its connections with it.
      socket.on('error', () => {});
      socket.on('end', () => socket.end());
      socket.on('data', (data) => socket.write(inverted(data)));
    });
  }

  async open(): Promise<void> {
    this.#udp.bind(0, '127.0.0.1');
    this.#server.listen(`${this.#hostSocket}_${vsockPort}`);
    await Promise.all([once(this.#udp, 'listening'), once(this.#server, 'listening')]);
  }

  /** Backends, by what they serve. */
  specs(): Readonly<Record<Kind, object>> {
    const { guest: address, prefixLength, gateway } = passtNetwork;
    return {
      blk: { type: 'qemu-storage-daemon', path: this.#image },
      fs: { type: 'virtiofsd', directory: this.#tree, tag: 'shared' },
      net: { type: 'passt', address, prefixLength, gateway, dns: [], ipv4Only: true, hostLoopback: true },
      vsock: { type: 'vhost-device-vsock', guestCid, hostSocket: this.#hostSocket },
    };
  }

  work(kind: Kind, device: number): Work {
    if (kind === 'blk') return { kind, device, bytes: writtenBytes };
    if (kind === 'fs') return { kind, device };
    if (kind === 'net') return { kind, device, port: this.#udp.address().port };
    return { kind, device, port: vsockPort, bytes: streamBytes };
  }

  /** The result of a guest's work when it does it for the n-th time. */
  expected(kind: Kind, run: number): readonly string[] {
    if (kind === 'blk') return [sha256(plainContent(run, writtenBytes))];
    if (kind === 'fs') return treeLines(this.#tree, '');
    if (kind === 'net') return ['1', '64', '1400'];
    return [sha256(inverted(plainContent(run, streamBytes)))];
  }

  /** What was done, in words. */
  words(kind: Kind): string {
    if (kind === 'blk') return `${writtenBytes / 1024 ** 2} MiB written, flushed and read`;
    if (kind === 'fs') return `a tree with a file of ${fileBytes / 1024} KiB read`;
    return kind === 'net' ? 'ARP and UDP answered' : `${streamBytes / 1024} KiB sent and returned`;
  }

  /** What the disk image begins with. */
  get written(): string {
    return sha256(readFileSync(this.#image).subarray(0, writtenBytes));
  }

  close(): void {
    this.#udp.close();
    this.#server.close();
  }
}

function makeTree(at: string): void {
  mkdirSync(join(at, 'a', 'b'), { recursive: true });
  writeFileSync(join(at, 'empty'), '');
  writeFileSync(join(at, 'a', 'one byte'), '1', { mode: 0o600 });
  writeFileSync(join(at, 'a', 'b', 'large'), plainContent(7, fileBytes), { mode: 0o444 });
  symlinkSync('a/b/large', join(at, 'link'));
}

/** As the program `devices` lists a tree. */
function treeLines(path: string, name: string): string[] {
  const { mode } = lstatSync(path);
  const own = `${name} ${mode.toString(8)}`;
  const type = mode >>> 12;
  if (type === 10) return [`${own} ${readlinkSync(path)}`];
  if (type !== 4) return [`${own} ${sha256(readFileSync(path))}`];
  return [own, ...readdirSync(path).flatMap((entry) => treeLines(join(path, entry), `${name}/${entry}`))];
}
