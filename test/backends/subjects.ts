import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { blkFeature } from '../../src/virtio/features.ts';
import { readU32, readU64 } from '../../src/wire/bytes.ts';
import { BackendProcess } from '../support/backend-process.ts';
import {
  type BackendName,
  backendProgram,
  passtArguments,
  passtNetwork,
  storageDaemonArguments,
  virtiofsdArguments,
  vsockArguments,
} from '../support/backend-programs.ts';
import { netFeature } from '../support/net-guest.ts';
import { emptyQcow2 } from '../support/qcow2.ts';
import type { Subject } from './contract.ts';
import { blkJob, fsJob, netJob, pattern, vsockJob } from './jobs.ts';

const diskBytes = 8 * 1024 * 1024;
const guestCid = 42n;

/** A program that listens on a socket for the service. */
class Program {
  readonly #name: BackendName;
  readonly #args: readonly string[];
  readonly #socket: string;
  #process: BackendProcess | undefined;

  constructor(name: BackendName, args: readonly string[], socket: string) {
    this.#name = name;
    this.#args = args;
    this.#socket = socket;
  }

  /** Leaves one alone that runs. */
  async start(): Promise<void> {
    if (this.#process?.hasEnded === false) return;
    this.#process = await BackendProcess.start(backendProgram(this.#name), this.#args, this.#socket);
  }

  async kill(): Promise<void> {
    await this.#process?.kill();
  }
}

type Rest = Pick<Subject, 'device' | 'survivesKill' | 'open'>;

/** A subject whose program is started here; the service gets its socket. */
function started(name: BackendName, socket: string, args: readonly string[], rest: Rest): Subject {
  const program = new Program(name, args, socket);
  return {
    ...rest,
    attachSpec: { type: 'vhost-user', device: rest.device.name, socket },
    dataPath: 'shadow',
    start: () => program.start(),
    kill: () => program.kill(),
    close: () => program.kill(),
  };
}

const storesAt =
  (file: string) =>
  (offset: number, data: Uint8Array): boolean =>
    readFileSync(file)
      .subarray(offset, offset + data.length)
      .equals(data);

const disk = (queues: number): Subject['device'] => ({
  name: 'blk',
  queues,
  features: [blkFeature.SEG_MAX, blkFeature.FLUSH, blkFeature.MQ, blkFeature.DISCARD, blkFeature.WRITE_ZEROES],
  config: (bytes) => assert.equal(readU64(bytes, 0), BigInt(diskBytes / 512)),
});

export function builtInDisk(directory: string): Subject {
  const file = join(directory, 'disk.img');
  writeFileSync(file, Buffer.alloc(diskBytes));
  return {
    device: disk(2),
    attachSpec: { type: 'blk', path: file, queues: 2 },
    dataPath: 'direct',
    survivesKill: true,
    start: async () => {},
    open: (bus, number) => blkJob(bus, number, { isStored: storesAt(file) }),
    close: async () => {},
  };
}

export function rawStorageDaemon(directory: string): Subject {
  const [file, socket] = [join(directory, 'disk.img'), join(directory, 'disk.sock')];
  writeFileSync(file, Buffer.alloc(diskBytes));
  const args = storageDaemonArguments({ socket, file, queues: 2, writable: true });
  return started('qemu-storage-daemon', socket, args, {
    device: disk(2),
    survivesKill: true,
    open: (bus, number) => blkJob(bus, number, { isStored: storesAt(file) }),
  });
}

export function qcow2StorageDaemon(directory: string): Subject {
  const [file, socket] = [join(directory, 'disk.qcow2'), join(directory, 'disk.sock')];
  writeFileSync(file, emptyQcow2(diskBytes));
  const args = storageDaemonArguments({ socket, file, format: 'qcow2', queues: 2, writable: true });
  // Clusters are where there was room for them.
  const isStored = (_: number, data: Uint8Array): boolean => readFileSync(file).includes(Buffer.from(data));
  return started('qemu-storage-daemon', socket, args, {
    device: disk(2),
    survivesKill: true,
    // A daemon that is killed forgets tables that it had not written yet, of requests that it had completed.
    open: (bus, number) => blkJob(bus, number, { isStored, writesThrough: true }),
  });
}

export function sharedDirectory(directory: string, tag = 'shared files'): Subject {
  const [shared, socket] = [join(directory, 'shared'), join(directory, 'fs.sock')];
  makeTree(shared);
  return started('virtiofsd', socket, virtiofsdArguments({ socket, directory: shared, tag }), {
    device: {
      name: 'fs',
      queues: 2,
      features: [],
      config: (bytes) => {
        assert.equal(Buffer.from(bytes.subarray(0, 36)).toString().replace(/\0+$/, ''), tag);
        assert.equal(readU32(bytes, 36), 1);
      },
    },
    survivesKill: false,
    open: (bus, number) => fsJob(bus, number, shared),
  });
}

function makeTree(at: string): void {
  mkdirSync(join(at, 'a', 'b'), { recursive: true, mode: 0o755 });
  mkdirSync(join(at, 'closed'), { mode: 0o700 });
  writeFileSync(join(at, 'empty'), '');
  writeFileSync(join(at, 'a', 'one byte'), '1', { mode: 0o600 });
  writeFileSync(join(at, 'a', 'b', 'large'), pattern(300_007, 1), { mode: 0o444 });
  writeFileSync(join(at, 'a', 'b', 'name with ü and €'), 'text\n');
  symlinkSync('a/b/large', join(at, 'link'));
  // More than one answer to READDIR.
  for (let i = 0; i < 100; i++) writeFileSync(join(at, 'closed', `one of many files, number ${i}`), `${i}`);
}

export function userModeNetwork(directory: string, features: readonly number[]): Subject {
  const socket = join(directory, 'net.sock');
  return started('passt', socket, passtArguments({ socket }), {
    device: {
      name: 'net',
      queues: 2,
      features: [netFeature.MRG_RXBUF],
      config: (bytes) => assert.equal(bytes.length, 0),
    },
    survivesKill: true,
    open: (bus, number) => netJob(bus, number, features),
  });
}

export function sockets(directory: string): Subject {
  const [socket, hostSocket] = [join(directory, 'vsock.sock'), join(directory, 'host')];
  const args = vsockArguments({ socket, hostSocket, guestCid: Number(guestCid) });
  return started('vhost-device-vsock', socket, args, {
    device: { name: 'vsock', queues: 3, features: [], config: (bytes) => assert.equal(readU64(bytes, 0), guestCid) },
    survivesKill: false,
    open: (bus, number) => vsockJob(bus, number, hostSocket),
  });
}

/** Programs that the service starts itself, and how the guest's data reaches them. */
type SpawnedPath = 'direct' | 'shadow';

/** A subject that needs nothing of us: the service starts its program. */
function spawned(attachSpec: object, dataPath: SpawnedPath, like: Rest): Subject {
  return {
    ...like,
    // auto is direct for these.
    attachSpec: { ...attachSpec, ...(dataPath === 'direct' ? {} : { dataPath }) },
    dataPath,
    isProgram: true,
    start: async () => {},
    close: async () => {},
  };
}

const only = ({ device, survivesKill, open }: Subject): Rest => ({ device, survivesKill, open });

export const spawnedDisk =
  (dataPath: SpawnedPath) =>
  (directory: string): Subject =>
    spawned(
      { type: 'qemu-storage-daemon', path: join(directory, 'disk.img'), queues: 2 },
      dataPath,
      only(rawStorageDaemon(directory)),
    );

export const spawnedDirectory =
  (dataPath: SpawnedPath) =>
  (directory: string): Subject =>
    spawned(
      { type: 'virtiofsd', directory: join(directory, 'shared'), tag: 'shared', sandbox: 'none' },
      dataPath,
      only(sharedDirectory(directory, 'shared')),
    );

/** Frames that are sent have one buffer where nobody joins them: passt ends when one has two. */
export const spawnedNetwork =
  (dataPath: SpawnedPath) =>
  (directory: string): Subject => {
    const { guest: address, prefixLength, gateway } = passtNetwork;
    const network = { address, prefixLength, gateway, dns: [], ipv4Only: true, hostLoopback: true };
    const framing = dataPath === 'direct' ? 'in one' : 'split';
    const { device } = userModeNetwork(directory, []);
    return spawned({ type: 'passt', ...network }, dataPath, {
      device: { ...device, config: (bytes) => assert.equal(bytes.length, 12) },
      survivesKill: true,
      open: (bus, number) => netJob(bus, number, [netFeature.MRG_RXBUF], framing),
    });
  };

export const spawnedSockets =
  (dataPath: SpawnedPath) =>
  (directory: string): Subject =>
    spawned(
      { type: 'vhost-device-vsock', hostSocket: join(directory, 'host'), guestCid: Number(guestCid) },
      dataPath,
      only(sockets(directory)),
    );
