import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { StringDecoder } from 'node:string_decoder';
import { findTool } from './tools.mjs';

const machineMiB = 3072;
const dom0MiB = 1024;
const kernelAddress = '0x60000000';
const initramfsAddress = '0x66000000';
const sectorBytes = 512;
const silenceLimitMs = 120_000;
const bootLimitMs = 15 * 60_000;
const watchPeriodMs = 1000;
const exitGraceMs = 3000;
const tailBytes = 4000;

/** QEMU reads a comma in a value as the end of it. */
const quoted = (value) => value.replaceAll(',', ',,');

/**
 * QEMU's arguments for one boot. One virtual processor: several are slower under emulation.
 * @param {import('./image.mjs').Image} image
 * @param {{xsm?: 'silo' | 'dummy', dom0Arguments: string[], job?: string, moreDisks?: string[], serialLog: string,
 *   tap?: string}} options without a job the serial line is on our terminal, with it on the log only, and what the job prints is on stdout
 */
export function qemuArguments({ base, app }, { xsm, dom0Arguments, job, moreDisks = [], serialLog, tap }) {
  const xen = [`dom0_mem=${dom0MiB}M`, 'console=dtuart', 'bootscrub=0', 'conring_size=1m'];
  if (xsm !== undefined) xen.push(`xsm=${xsm}`);
  // Self-tests of ciphers and security modules take a third of the kernel's start under emulation.
  const quick = [
    'nokaslr',
    'kpti=off',
    'mitigations=off',
    'init_on_alloc=0',
    'hardened_usercopy=off',
    'cryptomgr.notests',
    'lsm=capability',
    'audit=0',
    'cma=0',
  ];
  const dom0 = ['console=hvc0', 'loglevel=4', 'panic=1', ...quick, 'rdinit=/init', 'vmsg.disk=vd', ...dom0Arguments];
  const disks = [base.disk, app, ...(job === undefined ? [] : [job]), ...moreDisks].flatMap((file, i) => [
    '-drive',
    `if=none,id=disk${i},file=${quoted(file)},format=raw,readonly=on`,
    '-device',
    `virtio-blk-pci,drive=disk${i},disable-legacy=on`,
  ]);
  const log = quoted(serialLog);
  const serial =
    job === undefined
      ? ['-chardev', `stdio,id=serial,mux=on,signal=off,logfile=${log}`, '-mon', 'chardev=serial,mode=readline']
      : ['-chardev', `file,id=serial,path=${log}`, ...ports(tap)];
  return [
    ...['-machine', 'virt,virtualization=on,gic-version=3', '-accel', 'tcg,thread=multi', '-cpu', 'neoverse-n1'],
    ...['-smp', '1', '-m', `${machineMiB}M`, '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-kernel', base.xen, '-append', xen.join(' ')],
    ...['-device', `guest-loader,addr=${kernelAddress},kernel=${quoted(base.kernel)},bootargs=${dom0.join(' ')}`],
    ...['-device', `guest-loader,addr=${initramfsAddress},initrd=${quoted(base.initramfs)}`],
    ...disks,
    ...serial,
    ...['-serial', 'chardev:serial'],
  ];
}

/** What a job prints has a way of its own, so that neither Xen nor the kernel writes into it. */
function ports(tap) {
  const port = (name, chardev) => ['-device', `virtserialport,chardev=${chardev},name=${name}`];
  return [
    ...[
      '-device',
      'virtio-serial-pci,disable-legacy=on',
      '-chardev',
      'stdio,id=show,signal=off',
      ...port('show', 'show'),
    ],
    ...(tap === undefined ? [] : ['-chardev', `file,id=tap,path=${quoted(tap)}`, ...port('tap', 'tap')]),
  ];
}

/** Starts QEMU so that it cannot outlive us, whatever ends us. */
function start(command, stdio) {
  const setpriv = findTool('setpriv');
  const [program, ...args] = setpriv ? [setpriv, '--pdeathsig', 'KILL', ...command] : command;
  const child = spawn(program, args, { stdio });
  const kill = () => child.kill('SIGKILL');
  // The terminal's Ctrl-C reaches QEMU as well, which then may leave the terminal as it should be.
  const end = () => {
    child.kill('SIGTERM');
    setTimeout(kill, exitGraceMs).unref();
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  process.on('exit', kill);
  for (const signal of signals) process.on(signal, end);
  const ended = new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => resolve({ code, signal }));
  }).finally(() => {
    process.off('exit', kill);
    for (const signal of signals) process.off(signal, end);
  });
  return { child, ended, kill };
}

/** The end of a serial log, without what is not text. */
export function tailOf(file) {
  if (!existsSync(file)) return '';
  const { size } = statSync(file);
  const bytes = Buffer.alloc(Math.min(size, tailBytes));
  const descriptor = openSync(file, 'r');
  readSync(descriptor, bytes, 0, bytes.length, size - bytes.length);
  closeSync(descriptor);
  const lines = bytes
    .toString()
    .replace(/[^\n\t\x20-\x7e]/g, '')
    .split('\n');
  return lines
    .slice(size > tailBytes ? 1 : 0)
    .join('\n')
    .trimEnd();
}

/** Kills a machine that says nothing any more, or goes on for too long. */
function watch(kill, serialLog, lastShown) {
  const began = performance.now();
  let reason;
  let [size, changed] = [0, began];
  const timer = setInterval(() => {
    const now = performance.now();
    const current = statSync(serialLog, { throwIfNoEntry: false })?.size ?? 0;
    if (current !== size) [size, changed] = [current, now];
    if (now - Math.max(changed, lastShown()) > silenceLimitMs)
      reason = `dom0 said nothing for ${silenceLimitMs / 1000} s`;
    if (now - began > bootLimitMs) reason = `dom0 ran for more than ${bootLimitMs / 60_000} minutes`;
    if (reason !== undefined) kill();
  }, watchPeriodMs);
  return {
    stop: () => clearInterval(timer),
    reason: () => reason,
  };
}

/** A disk with nothing but the text, padded to whole sectors with newlines. */
function writeJob(file, script) {
  const length = Math.ceil(Buffer.byteLength(script) / sectorBytes) * sectorBytes;
  writeFileSync(file, script + '\n'.repeat(length - Buffer.byteLength(script)));
}

/**
 * Boots dom0, runs a shell script in it and ends with it.
 * @param {import('./image.mjs').Image} image
 * @param {{name: string, script: string, xsm?: 'silo' | 'dummy', moreDisks?: string[], tap?: string,
 *   onText: (text: string) => void}} job `name` names the log; `moreDisks` are /dev/vdd and so on, read-only; /dev/virtio-ports/tap inside is the file `tap` here; `onText` gets what the script prints
 * @returns {Promise<{status: number, bootMs: number, serialLog: string} | {failure: string, serialLog: string}>} the script's exit status
 *   and the time until it began, or why it did not end
 */
export async function runInDom0(image, { name, script, xsm, moreDisks, tap, onText }) {
  const began = performance.now();
  const serialLog = path.join(image.directory, `${name}.log`);
  const directory = mkdtempSync(path.join(image.directory, 'job-'));
  const job = path.join(directory, 'job');
  let shownAt = 0;
  let bootMs;
  let status;
  const control = (line) => {
    const [, word, value] = /^@vmsg (ready|exit)(?: (\d+))?$/.exec(line) ?? [];
    if (word === 'ready') bootMs ??= performance.now() - began;
    if (word === 'exit') status ??= Number(value);
    return word !== undefined;
  };
  const lines = new LineSplitter((line) => {
    shownAt = performance.now();
    if (!control(line)) onText(`${line}\n`);
  });
  try {
    writeJob(job, script);
    rmSync(serialLog, { force: true });
    const options = { xsm, dom0Arguments: ['vmsg.mode=job'], job, moreDisks, serialLog, tap };
    const { child, ended, kill } = start(
      [...image.qemu.command, ...qemuArguments(image, options)],
      ['pipe', 'pipe', 'inherit'],
    );
    const watchdog = watch(kill, serialLog, () => shownAt);
    child.stdout.on('data', (bytes) => lines.push(bytes));
    const { code, signal } = await ended.finally(watchdog.stop);
    lines.end();
    if (watchdog.reason() === undefined && status !== undefined) return { status, bootMs, serialLog };
    return { failure: watchdog.reason() ?? `QEMU ended early (${signal ?? `status ${code}`})`, serialLog };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

class LineSplitter {
  #decoder = new StringDecoder();
  #rest = '';
  #onLine;

  constructor(onLine) {
    this.#onLine = onLine;
  }

  push(bytes) {
    const lines = (this.#rest + this.#decoder.write(bytes)).split('\n');
    this.#rest = lines.pop();
    for (const line of lines) this.#onLine(line);
  }

  end() {
    if (this.#rest !== '') this.#onLine(this.#rest);
    this.#rest = '';
  }
}

/**
 * Boots dom0 with its console on our terminal.
 * @returns {Promise<number>} QEMU's exit status
 */
export async function dom0Shell(image, { xsm } = {}) {
  const rows = process.stdout.rows || 24;
  const columns = process.stdout.columns || 80;
  const dom0Arguments = ['vmsg.mode=shell', `vmsg.rows=${rows}`, `vmsg.columns=${columns}`, `TERM=${terminalType()}`];
  const serialLog = path.join(image.directory, 'shell.log');
  const { ended } = start(
    [...image.qemu.command, ...qemuArguments(image, { xsm, dom0Arguments, serialLog })],
    'inherit',
  );
  const { code } = await ended;
  return code ?? 1;
}

/** Only what busybox draws for; the guests have no terminal descriptions. */
function terminalType() {
  return /^[\w.+-]{1,40}$/.test(process.env.TERM ?? '') ? process.env.TERM : 'vt102';
}
