import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { root } from './tree.mjs';

/** A failure that one sentence explains; it is printed without a stack. */
export class UserError extends Error {}

/** @returns {string} the time since `start` (performance.now()) in seconds, as `6.8 s` */
export function secondsSince(start) {
  return `${((performance.now() - start) / 1000).toFixed(1)} s`;
}

/** Prints `label …` on stderr, and the elapsed time when `work` has ended. */
export async function progress(label, work) {
  const start = performance.now();
  const terminal = process.stderr.isTTY;
  process.stderr.write(`${label} … `);
  const redraw = () => process.stderr.write(`\r${label} … ${secondsSince(start)} `);
  const timer = terminal ? setInterval(redraw, 1000) : undefined;
  try {
    return await work();
  } finally {
    clearInterval(timer);
    process.stderr.write(terminal ? `\r${label} … ${secondsSince(start)}\n` : `${secondsSince(start)}\n`);
  }
}

function forwardSignals(child) {
  // A terminal sends SIGINT to the child as well.
  const signals = process.stdin.isTTY ? ['SIGTERM', 'SIGHUP'] : ['SIGTERM', 'SIGHUP', 'SIGINT'];
  const forward = (signal) => child.kill(signal);
  const ignore = () => {};
  for (const signal of signals) process.on(signal, forward);
  if (process.stdin.isTTY) process.on('SIGINT', ignore);
  return () => {
    for (const signal of signals) process.off(signal, forward);
    process.off('SIGINT', ignore);
  };
}

/**
 * Runs a program in the package root until it has exited and its output has ended.
 * @param {string[]} command program and arguments
 * @param {{onStdout?: (bytes: Buffer) => void, onStderr?: (bytes: Buffer) => void, lock?: number,
 *   env?: Record<string, string>}} [options] the first two take the output as it comes, without them it goes to our own;
 *   the program keeps the descriptor `lock` open; `env` adds to our environment
 * @returns {Promise<number>} its exit status, 128 + n after a signal
 */
export function run([program, ...args], { onStdout, onStderr, lock, env } = {}) {
  return new Promise((resolve, reject) => {
    const reads = onStdout !== undefined;
    const stdio = [
      reads ? 'ignore' : 'inherit',
      reads ? 'pipe' : 'inherit',
      onStderr ? 'pipe' : 'inherit',
      ...(lock === undefined ? [] : [lock]),
    ];
    const child = spawn(program, args, { cwd: root, stdio, env: { ...process.env, ...env } });
    const release = forwardSignals(child);
    child.stdout?.on('data', onStdout);
    child.stderr?.on('data', onStderr);
    child.once('error', (error) => {
      release();
      reject(new UserError(`${program} cannot be run: ${error.message}`));
    });
    child.once('close', (code, signal) => {
      release();
      resolve(code ?? 128 + constants.signals[signal]);
    });
  });
}

/** Like `run`, and returns the combined output as text. */
export async function capture(command, lock) {
  const chunks = [];
  const take = (bytes) => chunks.push(bytes);
  const status = await run(command, { onStdout: take, onStderr: take, lock });
  return { status, output: Buffer.concat(chunks).toString() };
}

/** The user or the system wants this process to end. */
export class Interrupted extends UserError {
  constructor(signal) {
    super(`ended by ${signal}`);
    this.status = 128 + constants.signals[signal];
  }
}

/** Awaits one step of several that itself ends on a signal; after one, no other step begins. @throws Interrupted */
export async function endOnSignal(step) {
  let signal;
  const note = (name) => {
    signal ??= name;
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  for (const name of signals) process.on(name, note);
  const result = await step().finally(() => {
    for (const name of signals) process.off(name, note);
  });
  if (signal !== undefined) throw new Interrupted(signal);
  return result;
}
