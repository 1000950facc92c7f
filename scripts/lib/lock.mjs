import { statSync } from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { UserError } from './process.mjs';
import { root } from './tree.mjs';

const waitLimitMs = 600_000;
const pollMs = 100;

function tryBind(name) {
  return new Promise((resolve, reject) => {
    const server = net.createServer((socket) => socket.destroy());
    server.once('error', (error) => (error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error)));
    server.listen({ path: name, exclusive: true }, () => resolve(server));
  });
}

/**
 * Runs `work` while no other run installs or builds this tree. The lock is an abstract Unix socket named after the
 * directory's inode: the kernel drops it when its owner dies, so there is never a stale one, and it needs no
 * writable file. `work` gets the socket's descriptor and hands it on to the programs it runs: should this process be
 * killed, the lock stays until they have ended too.
 * @param {(lock: number) => Promise<unknown>} work
 */
export async function withTreeLock(work) {
  const { dev, ino } = statSync(root);
  const name = `\0vmsg-tree-${dev}-${ino}`;
  const deadline = performance.now() + waitLimitMs;
  let server = await tryBind(name);
  if (server === undefined) process.stderr.write('another run installs or builds here, waiting …\n');
  while (server === undefined) {
    if (performance.now() > deadline) {
      throw new UserError(`Another run has held this tree for ${waitLimitMs / 1000} s; end it and try again.`);
    }
    await sleep(pollMs);
    server = await tryBind(name);
  }
  try {
    return await work(server._handle.fd);
  } finally {
    server.close();
  }
}
