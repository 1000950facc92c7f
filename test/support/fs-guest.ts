import assert from 'node:assert/strict';
import { type GuestBuffer, type GuestBus, VirtioDevice, type VirtQueue } from '../../src/guest/index.ts';
import { Slots } from '../../src/guest/slots.ts';
import { deviceIdOf } from '../../src/virtio/device-ids.ts';
import { type Decoded, decode, encode, type Fields, type Layout, Malformed } from '../../src/wire/layout.ts';
import {
  fsConfig,
  fuseAttr,
  fuseAttrOut,
  fuseCreateIn,
  fuseDirent,
  fuseEntryOut,
  fuseForgetIn,
  fuseFsyncIn,
  fuseGetattrIn,
  fuseInHeader,
  fuseInitIn,
  fuseInitOut,
  fuseMkdirIn,
  fuseOp,
  fuseOpenIn,
  fuseOpenOut,
  fuseOutHeader,
  fuseReadIn,
  fuseReleaseIn,
  fuseRoot,
  fuseVersion,
  fuseWriteIn,
  fuseWriteOut,
} from './fuse-wire.ts';

const dataBytes = 64 * 1024;
const headBytes = 512;
const depth = 8;
const openReadWrite = 2;
const regularFile = 0o100000;

/** What a request of the file system ended with. */
class FuseError extends Error {
  readonly errno: number;
  constructor(errno: number) {
    super(`the file system answered ${-errno}`);
    this.errno = errno;
  }
}

export interface FsNode {
  readonly node: bigint;
  readonly mode: number;
  readonly size: number;
}

export interface FsEntry {
  readonly name: string;
  /** Upper four bits of the mode: 4 a directory, 8 a file, 10 a link. */
  readonly type: number;
}

interface Slot {
  readonly readable: GuestBuffer;
  readonly writable: GuestBuffer;
}

/** Bytes of a fixed layout and of what follows it. */
function pack<L extends Layout<Fields>>(l: L, value: Decoded<L>, ...more: readonly Uint8Array[]): Uint8Array {
  const head = new Uint8Array(l.size);
  encode(l, value, head);
  return Buffer.concat([head, ...more]);
}

function unpack<L extends Layout<Fields>>(l: L, from: Uint8Array, offset = 0): Decoded<L> {
  const value = decode(l, from, offset, from.length - offset, 'ignore');
  assert.ok(!(value instanceof Malformed), value instanceof Malformed ? value.reason : '');
  return value;
}

const nameBytes = (name: string): Uint8Array => Buffer.from(`${name}\0`);

/** Uses a file system device as the kernel of a guest does (virtio 1.3, 5.11; FUSE). For tests. */
export class FsGuest {
  readonly device: VirtioDevice;
  /** What FORGET is for. */
  readonly #urgent: VirtQueue;
  readonly #queue: VirtQueue;
  readonly #slots: Slots<Slot>;
  readonly #forget: GuestBuffer;
  /** Names that a host may give to what this guest has seen. */
  readonly #seen = new Map<bigint, bigint>();
  #unique = 1n;
  tag = '';

  private constructor(device: VirtioDevice, urgent: VirtQueue, queue: VirtQueue) {
    this.device = device;
    this.#urgent = urgent;
    this.#queue = queue;
    this.#forget = device.alloc(fuseInHeader.size + fuseForgetIn.size);
    const slot = (): Slot => ({
      readable: device.alloc(headBytes + dataBytes),
      writable: device.alloc(headBytes + dataBytes),
    });
    this.#slots = new Slots(Array.from({ length: depth }, slot));
    device.on('failed', (error) => this.#slots.end(error));
  }

  static async open(bus: GuestBus, number: number): Promise<FsGuest> {
    const device = await VirtioDevice.open(bus, number, { type: deviceIdOf('fs')! });
    try {
      const urgent = await device.addQueue(0);
      const queue = await device.addQueue(1);
      await device.start();
      const guest = new FsGuest(device, urgent, queue);
      await guest.#init();
      return guest;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  async #init(): Promise<void> {
    const config = unpack(fsConfig, await this.device.config.read(0, fsConfig.size));
    this.tag = Buffer.from(config.tag).toString('utf8').replace(/\0+$/, '');
    const init = pack(fuseInitIn, { ...fuseVersion, maxReadahead: dataBytes, flags: 0 });
    const answer = unpack(fuseInitOut, await this.request(fuseOp.INIT, 0n, init, fuseInitOut.size));
    assert.equal(answer.major, fuseVersion.major);
    assert.ok(answer.minor >= 27 && answer.maxWrite > 0);
  }

  #header(opcode: number, nodeid: bigint, bodyBytes: number) {
    this.#unique += 2n;
    const who = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, pid: process.pid };
    return { len: fuseInHeader.size + bodyBytes, opcode, unique: this.#unique, nodeid, ...who };
  }

  /** @returns what follows the header of the answer. @throws FuseError, VmsgError */
  async request(opcode: number, node: bigint, body: Uint8Array, answerBytes: number): Promise<Uint8Array> {
    const slot = await this.#slots.take();
    try {
      const header = this.#header(opcode, node, body.length);
      encode(fuseInHeader, header, slot.readable.bytes);
      slot.readable.bytes.set(body, fuseInHeader.size);
      const { readable, writable } = slot;
      const parts = body.length === 0 ? [] : [readable.range(fuseInHeader.size, body.length)];
      const answers = answerBytes === 0 ? [] : [writable.range(fuseOutHeader.size, answerBytes)];
      const head = readable.range(0, fuseInHeader.size);
      const written = await this.#queue.submit([head, ...parts], [writable.range(0, fuseOutHeader.size), ...answers]);
      const answer = unpack(fuseOutHeader, writable.bytes.subarray(0, written));
      assert.deepEqual([answer.unique, answer.len], [header.unique, written]);
      if (answer.error !== 0) throw new FuseError(answer.error);
      return writable.bytes.slice(fuseOutHeader.size, written);
    } finally {
      this.#slots.give(slot);
    }
  }

  #entry(bytes: Uint8Array): FsNode {
    const { nodeid } = unpack(fuseEntryOut, bytes);
    this.#seen.set(nodeid, (this.#seen.get(nodeid) ?? 0n) + 1n);
    const { mode, size } = unpack(fuseAttr, bytes, fuseEntryOut.size);
    return { node: nodeid, mode, size: Number(size) };
  }

  async lookup(directory: bigint, name: string): Promise<FsNode> {
    const room = fuseEntryOut.size + fuseAttr.size;
    return this.#entry(await this.request(fuseOp.LOOKUP, directory, nameBytes(name), room));
  }

  async attributes(node: bigint): Promise<FsNode> {
    const room = fuseAttrOut.size + fuseAttr.size;
    const answer = await this.request(fuseOp.GETATTR, node, pack(fuseGetattrIn, { flags: 0, fh: 0n }), room);
    const { mode, size } = unpack(fuseAttr, answer, fuseAttrOut.size);
    return { node, mode, size: Number(size) };
  }

  async readLink(node: bigint): Promise<string> {
    return Buffer.from(await this.request(fuseOp.READLINK, node, new Uint8Array(0), 4096)).toString();
  }

  async #opened<T>(
    node: bigint,
    [open, release]: readonly [number, number],
    use: (fh: bigint) => Promise<T>,
  ): Promise<T> {
    const answer = await this.request(open, node, pack(fuseOpenIn, { flags: 0 }), fuseOpenOut.size);
    const { fh } = unpack(fuseOpenOut, answer);
    const result = await use(fh);
    await this.request(release, node, pack(fuseReleaseIn, { fh }), 0);
    return result;
  }

  /** Names in a directory, `.` and `..` left out. */
  entries(directory: bigint): Promise<FsEntry[]> {
    return this.#opened(directory, [fuseOp.OPENDIR, fuseOp.RELEASEDIR], async (fh) => {
      const found: FsEntry[] = [];
      for (let offset = 0n; ; ) {
        const part = await this.request(fuseOp.READDIR, directory, pack(fuseReadIn, { fh, offset, size: 4096 }), 4096);
        if (part.length === 0) return found;
        for (let at = 0; at < part.length; ) {
          const entry = unpack(fuseDirent, part, at);
          const start = at + fuseDirent.size;
          const name = Buffer.from(part.subarray(start, start + entry.nameBytes)).toString();
          if (name !== '.' && name !== '..') found.push({ name, type: entry.type });
          offset = entry.next;
          at += Math.ceil((fuseDirent.size + entry.nameBytes) / 8) * 8;
        }
      }
    });
  }

  readFile(node: bigint): Promise<Uint8Array> {
    return this.#opened(node, [fuseOp.OPEN, fuseOp.RELEASE], async (fh) => {
      const parts: Uint8Array[] = [];
      for (let offset = 0n; ; ) {
        const read = pack(fuseReadIn, { fh, offset, size: dataBytes });
        const part = await this.request(fuseOp.READ, node, read, dataBytes);
        if (part.length === 0) return Buffer.concat(parts);
        parts.push(part);
        offset += BigInt(part.length);
      }
    });
  }

  async makeDirectory(parent: bigint, name: string, mode: number): Promise<FsNode> {
    const body = pack(fuseMkdirIn, { mode, umask: 0 }, nameBytes(name));
    return this.#entry(await this.request(fuseOp.MKDIR, parent, body, fuseEntryOut.size + fuseAttr.size));
  }

  /** Makes a file with this content, durable. */
  async writeFile(parent: bigint, name: string, mode: number, content: Uint8Array): Promise<FsNode> {
    const create = pack(fuseCreateIn, { flags: openReadWrite, mode: regularFile | mode, umask: 0 }, nameBytes(name));
    const room = fuseEntryOut.size + fuseAttr.size;
    const answer = await this.request(fuseOp.CREATE, parent, create, room + fuseOpenOut.size);
    const made = this.#entry(answer);
    const { fh } = unpack(fuseOpenOut, answer, room);
    for (let offset = 0; offset < content.length; ) {
      const part = content.subarray(offset, offset + dataBytes - fuseWriteIn.size);
      const body = pack(fuseWriteIn, { fh, offset: BigInt(offset), size: part.length }, part);
      const { size } = unpack(fuseWriteOut, await this.request(fuseOp.WRITE, made.node, body, fuseWriteOut.size));
      assert.equal(size, part.length);
      offset += size;
    }
    await this.request(fuseOp.FSYNC, made.node, pack(fuseFsyncIn, { fh, flags: 0 }), 0);
    await this.request(fuseOp.RELEASE, made.node, pack(fuseReleaseIn, { fh }), 0);
    return made;
  }

  async unlink(parent: bigint, name: string): Promise<void> {
    await this.request(fuseOp.UNLINK, parent, nameBytes(name), 0);
  }

  async removeDirectory(parent: bigint, name: string): Promise<void> {
    await this.request(fuseOp.RMDIR, parent, nameBytes(name), 0);
  }

  /** Lets go of a node, through the queue for what goes first; nothing is answered. */
  async forget(node: bigint): Promise<void> {
    assert.notEqual(node, fuseRoot);
    const lookups = this.#seen.get(node) ?? 0n;
    this.#seen.delete(node);
    const { bytes } = this.#forget;
    encode(fuseInHeader, this.#header(fuseOp.FORGET, node, fuseForgetIn.size), bytes);
    encode(fuseForgetIn, { lookups }, bytes, fuseInHeader.size);
    assert.equal(await this.#urgent.submit([this.#forget], []), 0);
  }

  close(): Promise<void> {
    return this.device.close();
  }
}
