import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, freemem } from 'node:os';
import path from 'node:path';
import { programDisk } from '../../deploy/backends/disk.mjs';
import { backendTable } from '../../deploy/backends/table.mjs';
import { dom0Shell, runInDom0, tailOf } from '../../deploy/qemu/boot.mjs';
import { buildImage } from '../../deploy/qemu/image.mjs';
import { guestArchitecture } from '../../deploy/qemu/packages.mjs';
import { prepare } from './build.mjs';
import { endOnSignal, secondsSince, UserError } from './process.mjs';
import { TapReader } from './tap.mjs';
import { root } from './tree.mjs';
import { Turns } from './turns.mjs';

/**
 * The test files of a directory below test/xen share one emulated machine; those without `xsm` boot as Debian does, with
 * SILO. That with `programs` has a disk with the vhost-user programs of others. What takes longest comes first.
 */
const machines = { load: {}, domains: {}, backends: { programs: true }, dummy: { xsm: 'dummy' } };
/** One machine keeps one processor busy. */
const machinesAtOnce = 2;
const machineBytes = 3.5 * 1024 ** 3;
const testDirectory = 'dist/test/xen/';
/** Longest time of one file in dom0. */
const fileLimitMs = 10 * 60_000;
/** Where dom0 mounts the programs, its fourth disk. */
const programFolder = '/backends';
const programDevice = '/dev/vdd';

export const isXenTest = (file) => file.startsWith(testDirectory);

const log = (sentence) => process.stderr.write(`${sentence}\n`);

/** The verb: makes the image and says what it is made of. */
export async function xenImage() {
  await prepare();
  const start = performance.now();
  const image = await buildImage(log);
  const versions = image.base.packages.map(({ name, version }) => `  ${name} ${version}`);
  const { qemu, base, app, cache } = image;
  console.log(['packages of the archive:', ...versions].join('\n'));
  console.log(`QEMU:              ${qemu.description}`);
  console.log(
    `hypervisor:        ${base.xen}\nkernel:            ${base.kernel}\ninitramfs:         ${base.initramfs}`,
  );
  console.log(`base disk:         ${base.disk}\napplication disk:  ${app}\ncache:             ${cache}`);
  log(`the image is ready after ${secondsSince(start)}`);
  return 0;
}

/** The verb: a prompt in dom0. `--xsm=dummy` lets domUs share memory with each other. */
export async function xenShell(args) {
  const xsm = xsmOf(args);
  if (!process.stdin.isTTY) throw new UserError('xen:shell needs a terminal.');
  await prepare();
  return await dom0Shell(await buildImage(log), { xsm });
}

function xsmOf(args) {
  const [, value] = /^--xsm=(silo|dummy)$/.exec(args[0] ?? '') ?? [];
  if (args.length > 1 || (args.length === 1 && value === undefined)) {
    throw new UserError('usage: npm run xen:shell [-- --xsm=silo|dummy]');
  }
  return value;
}

const shellWord = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * Makes programs ready in dom0, and says how tests start them. passt passes nothing on, not even to dom0 itself, where
 * no interface has a route.
 */
function programScript(programs) {
  const mount = `mkdir ${programFolder} && mount -t ext4 -o ro ${programDevice} ${programFolder}`;
  const interfaceUp =
    'insmod /usr/lib/xen-modules/dummy.ko && ip addr add 192.0.2.1/24 dev dummy0 && ip link set dummy0 up';
  const route = 'ip route add default via 192.0.2.254';
  return `${mount} && ${interfaceUp} && ${route} || exit 1\nexport VMSG_BACKEND_PROGRAMS=${shellWord(JSON.stringify(programs))}\n`;
}

function testScript(files, options, onTerminal) {
  const reporters = onTerminal
    ? [
        ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
        ...['--test-reporter=tap', '--test-reporter-destination=/run/results.tap'],
      ]
    : ['--test-reporter=tap'];
  const fixed = ['--test', '--test-concurrency=1', `--test-timeout=${fileLimitMs}`, ...reporters];
  const command = `node ${[...fixed, ...options, ...files].map(shellWord).join(' ')}\n`;
  if (!onTerminal) return command;
  // Node syncs the file of a reporter, which the port does not support.
  return `export FORCE_COLOR=1\n${command}status=$?\ncat /run/results.tap >/dev/virtio-ports/tap\nexit $status\n`;
}

/**
 * Runs compiled test files inside dom0, those of each directory in a machine of their own.
 * @param {string[]} files
 * @param {string[]} options of `node --test`
 * @param {import('./test-output.mjs').TestOutput} output gets the machines one after the other
 * @returns {Promise<number>} 0 or a status other than that
 * @throws {import('../../deploy/qemu/errors.mjs').XenUnavailable} when something outside the tree is missing
 */
export async function runXenTests(files, options, output) {
  const names = Object.keys(machines);
  const strange = files.find((file) => !names.includes(machineOf(file)));
  if (strange !== undefined) throw new UserError(`${strange} is in none of test/xen/{${names.join(',')}}.`);
  const image = await buildImage(log);
  const jobs = names
    .map((name) => ({ name, chosen: files.filter((file) => machineOf(file) === name) }))
    .filter(({ chosen }) => chosen.length > 0);
  const needsPrograms = jobs.some(({ name }) => machines[name].programs);
  const programs = needsPrograms ? await arm64Programs() : undefined;
  const turns = new Turns(output, jobs.length);
  const waiting = [...jobs.entries()];
  const reports = jobs.map(() => []);
  let status = 0;
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [turn, { name, chosen }] = next;
      const outcome = await runInMachine({ image, programs }, name, chosen, options, turns.output(turn));
      status = outcome.status || status;
      reports[turn] = outcome.report;
      turns.end(turn);
    }
  };
  const workers = Math.min(jobs.length, room());
  if (workers > 1) log(`${jobs.length} machines, ${workers} at a time; each is shown after the one before it`);
  await endOnSignal(() => Promise.all(Array.from({ length: workers }, work)));
  log(`What the tests inside Xen measured (emulated, so sanity figures only):\n${reports.flat().join('\n')}`);
  return status;
}

const arm64Programs = () => programDisk(guestArchitecture, Object.keys(backendTable), programFolder, log);

const machineOf = (file) => file.slice(testDirectory.length).split('/')[0];

function room() {
  const processors = Math.min(machinesAtOnce, availableParallelism());
  return Math.max(1, Math.min(processors, Math.floor(freemem() / machineBytes)));
}

/** @returns {Promise<{status: number, report: string[]}>} */
async function runInMachine({ image, programs }, name, files, options, output) {
  const { xsm, programs: hasPrograms = false } = machines[name];
  const start = performance.now();
  const reader = new TapReader();
  const readTap = (text) => {
    reader.push(text);
    output.tap(text);
  };
  const tap = output.onTerminal ? path.join(image.directory, `${name}.tap`) : undefined;
  const outcome = await runInDom0(image, {
    name,
    script: (hasPrograms ? programScript(programs.programs) : '') + testScript(files, options, output.onTerminal),
    xsm,
    moreDisks: hasPrograms ? [programs.disk] : [],
    tap,
    onText: (text) => (output.onTerminal ? output.show(text) : readTap(text)),
  });
  if (tap !== undefined && existsSync(tap)) readTap(readFileSync(tap, 'utf8'));
  output.endRun();
  if ('failure' in outcome) {
    output.failure(`The Xen machine ${name}: ${outcome.failure}`);
    log(`The end of ${outcome.serialLog}:\n${tailOf(outcome.serialLog)}`);
    return { status: 1, report: [] };
  }
  log(`${files.length} test files in the Xen machine ${name} took ${secondsSince(start)}`);
  if (outcome.status !== 0) log(`What dom0 printed is in ${path.relative(root, outcome.serialLog)}.`);
  const bootSeconds = (outcome.bootMs / 1000).toFixed(1);
  // Rows of a table are for the documentation as they are.
  const measured = reader.remarks.map(({ test, text }) => (text.startsWith('|') ? text : `    ${text}  (${test})`));
  return { status: outcome.status, report: [`  ${name}: dom0 ready after ${bootSeconds} s`, ...measured] };
}
