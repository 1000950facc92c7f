import fs from 'node:fs';
import net from 'node:net';
import type { FastifyInstance } from 'fastify';
import { VmsgError } from '../src/kit/errors.ts';
import { limits } from '../src/kit/limits.ts';

export interface ListenOptions {
  /** Path of the Unix socket. */
  readonly path: string;
  /** Its permission bits. */
  readonly mode: number;
}

/**
 * Listens on a Unix socket. A socket that a dead service left is replaced, one that answers is not. The server
 * removes its socket when it closes.
 * @throws VmsgError `system-call` naming the path and what is wrong with it
 */
export async function listen(app: FastifyInstance, { path, mode }: ListenOptions): Promise<void> {
  if (Buffer.byteLength(path) > limits.unixSocketPathMaxBytes) {
    throw new VmsgError(
      'system-call',
      `bind ${path}: ENAMETOOLONG, a socket path has at most ${limits.unixSocketPathMaxBytes} bytes`,
    );
  }
  await removeStale(path);
  await app.ready();
  // Binding is synchronous, so the mask holds for this socket only, and there is no moment with wider permissions.
  const mask = process.umask(0o777 & ~mode);
  const listening = bound(app, { path }, path);
  process.umask(mask);
  await listening;
}

/** Listens on a socket that is bound already and passed by its descriptor. @throws VmsgError `system-call` */
export async function listenFd(app: FastifyInstance, fd: number): Promise<void> {
  await app.ready();
  await bound(app, { fd }, `descriptor ${fd}`);
}

/**
 * Listens on a loopback address.
 * @returns the port, which the kernel chooses when 0 is asked for
 * @throws VmsgError `system-call` naming the address and what is wrong with it
 */
export async function listenTcp(app: FastifyInstance, { host, port }: { host: string; port: number }): Promise<number> {
  await app.ready();
  await bound(app, { host, port }, `${host} port ${port}`);
  return (app.server.address() as net.AddressInfo).port;
}

/** Binds at once, and resolves when the server listens. */
function bound({ server }: FastifyInstance, where: net.ListenOptions & { fd?: number }, name: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error) =>
      reject(new VmsgError('system-call', `bind ${name}: ${error.message}`, { cause: error }));
    server.once('error', fail);
    server.listen(where, () => {
      server.off('error', fail);
      resolve();
    });
  });
}

async function removeStale(path: string): Promise<void> {
  const found = fs.lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new VmsgError('system-call', `bind ${path}: EEXIST, and it is not a socket`);
  if (await answers(path))
    throw new VmsgError('system-call', `bind ${path}: EADDRINUSE, another service answers there`);
  fs.rmSync(path, { force: true });
}

/** Whether somebody listens on a socket; one that does not decide in time is taken for alive. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(path);
    const finish = (alive: boolean) => {
      socket.destroy();
      resolve(alive);
    };
    socket.setTimeout(limits.socketProbeTimeoutMs, () => finish(true));
    socket.once('connect', () => finish(true));
    socket.once('error', (error: NodeJS.ErrnoException) =>
      finish(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT'),
    );
  });
}
