import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BackendProcess } from '../support/backend-process.ts';
import {
  type BackendName,
  backendProgram,
  passtArguments,
  storageDaemonArguments,
  virtiofsdArguments,
  vsockArguments,
} from '../support/backend-programs.ts';

const getFeatures = 1;
const getProtocolFeatures = 15;
const versionOne = 1n << 32n;
const protocolFeatures = 1n << 30n;
const replyAck = 1n << 3n;
const pollMs = 5;

/** Where a backend finds its things. */
interface Place {
  readonly directory: string;
  readonly socket: string;
}

function place(t: TestContext): Place {
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-backend-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return { directory, socket: path.join(directory, 'socket') };
}

async function start(t: TestContext, name: BackendName, args: readonly string[], socket: string) {
  const backend = await BackendProcess.start(backendProgram(name), args, socket);
  t.after(() => backend.kill());
  return backend;
}

async function connect(t: TestContext, { socket }: Place): Promise<net.Socket> {
  const connection = net.connect(socket);
  t.after(() => connection.destroy());
  await once(connection, 'connect');
  return connection;
}

/** One request without a payload whose answer is a number (vhost-user, "Message format"). */
async function ask(connection: net.Socket, request: number): Promise<bigint> {
  const header = Buffer.alloc(12);
  header.writeUInt32LE(request, 0);
  header.writeUInt32LE(1, 4);
  connection.write(header);
  let answer = Buffer.alloc(0);
  for await (const bytes of connection.iterator({ destroyOnReturn: false })) {
    answer = Buffer.concat([answer, bytes as Buffer]);
    if (answer.length >= 20) break;
  }
  assert.equal(answer.length, 20);
  assert.deepEqual([answer.readUInt32LE(0), answer.readUInt32LE(4), answer.readUInt32LE(8)], [request, 5, 8]);
  return answer.readBigUInt64LE(12);
}

async function assertModern(connection: net.Socket): Promise<bigint> {
  const features = await ask(connection, getFeatures);
  assert.equal(features & (versionOne | protocolFeatures), versionOne | protocolFeatures);
  return await ask(connection, getProtocolFeatures);
}

test('qemu-storage-daemon serves one connection after the other', async (t) => {
  const at = place(t);
  const file = path.join(at.directory, 'disk,1.img');
  writeFileSync(file, Buffer.alloc(1 << 20));
  const args = storageDaemonArguments({ socket: at.socket, file, queues: 2, writable: true });
  await start(t, 'qemu-storage-daemon', args, at.socket);
  for (let i = 0; i < 2; i++) {
    const connection = await connect(t, at);
    assert.ok((await assertModern(connection)) & replyAck);
    connection.destroy();
  }
});

test('virtiofsd ends with its connection', async (t) => {
  const at = place(t);
  const directory = path.join(at.directory, 'shared');
  mkdirSync(directory);
  const args = virtiofsdArguments({ socket: at.socket, directory, tag: 'shared' });
  const backend = await start(t, 'virtiofsd', args, at.socket);
  const connection = await connect(t, at);
  assert.ok((await assertModern(connection)) & replyAck);
  connection.destroy();
  assert.deepEqual(await backend.ended, { code: 0, signal: null }, backend.output);
});

test('passt serves one connection after the other', async (t) => {
  const at = place(t);
  await start(t, 'passt', passtArguments({ socket: at.socket }), at.socket);
  for (let i = 0; i < 2; i++) {
    const connection = await connect(t, at);
    assert.ok((await assertModern(connection)) & replyAck);
    connection.destroy();
  }
});

test('vhost-device-vsock makes its socket anew for the next connection', async (t) => {
  const at = place(t);
  const hostSocket = path.join(at.directory, 'host');
  await start(t, 'vhost-device-vsock', vsockArguments({ socket: at.socket, hostSocket, guestCid: 3 }), at.socket);
  const first = await connect(t, at);
  assert.ok((await assertModern(first)) & replyAck);
  first.destroy();
  // The old socket may take a connection that nobody serves, then there is none for a while.
  const second = async (): Promise<bigint | undefined> =>
    connect(t, at)
      .then(assertModern)
      .catch(() => undefined);
  let features = await second();
  for (; features === undefined; features = await second()) await sleep(pollMs);
  assert.ok(features & replyAck);
});
