import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { type Census, census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import type { Fd } from '../../src/libc/fd.ts';
import { Messenger } from '../../src/libc/messenger.ts';
import { sendNative } from '../../src/libc/native.ts';
import { type SocketType, socketPair } from '../../src/libc/unix-socket.ts';

export type Cases = Readonly<Record<string, () => void | Promise<void>>>;

/** Runs the cases of one test file in the main thread and again in a Worker. */
export function runEverywhere(moduleUrl: string, cases: Cases): void {
  if (!isMainThread) {
    serveCases(cases);
    return;
  }
  describe('in the main thread', () => {
    for (const [name, run] of Object.entries(cases)) test(name, () => withoutLeaks(run));
  });
  describe('in a Worker', () => {
    let worker: Worker | undefined;
    after(() => worker?.terminate());
    for (const name of Object.keys(cases)) {
      test(name, async () => {
        worker ??= new Worker(new URL(moduleUrl));
        worker.postMessage(name);
        const [failure] = (await once(worker, 'message')) as [string | undefined];
        assert.equal(failure, undefined);
      });
    }
  });
}

function serveCases(cases: Cases): void {
  assert(parentPort !== null);
  const port = parentPort;
  port.on('message', (name: string) => {
    withoutLeaks(async () => cases[name]?.()).then(
      () => port.postMessage(undefined),
      (error: unknown) => port.postMessage(error instanceof Error ? error.stack : String(error)),
    );
  });
}

async function withoutLeaks(run: () => void | Promise<void>): Promise<void> {
  const before = census();
  await run();
  await eventually(() => assert.deepEqual(census(), before));
}

/** Repeats a check until it holds, for what ends on another thread. */
export async function eventually(check: () => void): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      check();
      return;
    } catch (error) {
      if (attempt === 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

export function difference(before: Census, after_: Census, kind: string): number {
  return (after_.fds[kind] ?? 0) - (before.fds[kind] ?? 0);
}

/** Runs `run` with a folder that is removed afterwards. */
export async function withFolder(run: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'libc-'));
  try {
    await run(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Runs a script that may import 'libc/<file>' in a process of its own, which is killed when it hangs. */
export function runApart(script: string): { readonly output: string; readonly status: number | null } {
  const root = new URL('../../src/libc/', import.meta.url).href;
  const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
  const source = script.replace(/'libc\/([\w-]+)'/g, (_, file: string) => `'${root}${file}${extension}'`);
  const result = spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    encoding: 'utf8',
    timeout: 20_000,
    killSignal: 'SIGKILL',
  });
  return { output: result.stdout + result.stderr, status: result.status };
}

export interface Bench {
  readonly here: Fd;
  readonly there: Fd;
  readonly messenger: Messenger;
}

/** Runs `run` with two connected sockets and a messenger, which are closed afterwards. */
export async function withPair(
  run: (bench: Bench) => void | Promise<void>,
  { maxBytes = 64, maxFds = 4, type = 'seqpacket' as SocketType } = {},
): Promise<void> {
  const [here, there] = socketPair(type);
  const messenger = new Messenger(maxBytes, maxFds);
  try {
    await run({ here, there, messenger });
  } finally {
    for (const each of [here, there, messenger]) each.close();
  }
}

/** A message of no bytes, as only a hostile peer sends it. */
export function sendEmpty(fd: number): void {
  assert.equal(sendNative(fd, 0, 0, linux.MSG_DONTWAIT), 0);
}
