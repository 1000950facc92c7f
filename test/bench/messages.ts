import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Scope } from '../../src/kit/scope.ts';
import { type Means, microseconds, millionsPerSecond, type Race, type Run } from './item.ts';
import { linkArguments, makeLink } from './link.ts';
import type { Placement } from './placement.ts';
import { type Runner, startRunner } from './runner.ts';

const pingBytes = 12;
const ringProgram = [process.execPath, fileURLToPath(new URL('./ring-program.js', import.meta.url))];
const relayProgram = [process.execPath, fileURLToPath(new URL('./relay-program.js', import.meta.url))];
const noCompiler = 'no gcc';

/** A program that only serves others; it ends when they do. */
function companion(command: readonly string[], fds: readonly number[], scope: Scope): void {
  const [file = '', ...args] = command;
  const child = spawn(file, args, { stdio: ['ignore', 'inherit', 'inherit', ...fds] });
  scope.defer(() => child.kill('SIGKILL'));
}

/** Two programs on one link: `far` answers or consumes what `near` sends. */
async function pair(
  means: Means,
  placement: Placement,
  [near, far]: readonly [readonly string[], readonly string[]],
  messageBytes: number,
): Promise<Runner> {
  const { scope, processors } = means;
  const ours = new Scope();
  try {
    const link = makeLink(messageBytes, ours);
    const args = linkArguments(link, messageBytes);
    companion(processors.place([...far, ...args], placement, 1), [link.memory, link.bells[1]], scope);
    const fds = [link.memory, link.bells[0]];
    return await startRunner(processors.place([...near, ...args], placement, 0), scope, { fds });
  } finally {
    ours.close();
  }
}

/** A driver and a device, both `ends`, with a relay between them. */
async function relayed(
  { scope, processors }: Means,
  ends: readonly string[],
  relay: readonly string[],
  messageBytes: number,
): Promise<Runner> {
  const ours = new Scope();
  try {
    const [driver, device] = [makeLink(messageBytes, ours), makeLink(messageBytes, ours)];
    const args = linkArguments(driver, messageBytes);
    const placed = (command: readonly string[]) => processors.place([...command, ...args], 'together');
    companion(placed([...ends, 'echo']), [device.memory, device.bells[1]], scope);
    companion(placed(relay), [driver.memory, driver.bells[1], device.memory, device.bells[0]], scope);
    return await startRunner(placed([...ends, 'ping']), scope, { fds: [driver.memory, driver.bells[0]] });
  } finally {
    ours.close();
  }
}

const runOf =
  (runner: Runner, what = ''): Run =>
  (ms) =>
    runner.run(what, ms);

const roundTrip: Race = {
  kind: 'race',
  metric: microseconds,
  sides: { service: 'guest and service', c: 'C ring and doorbell, two processes' },
  comparisons: [{ name: 'message round trip', ours: 'service', baseline: 'c', bar: 0.6 }],
  async open(means) {
    const { guest } = await means.world('together');
    const ring = means.baselines?.ring;
    const ends = [
      [ring ?? '', 'ping'],
      [ring ?? '', 'echo'],
    ] as const;
    const c = ring === undefined ? noCompiler : runOf(await pair(means, 'together', ends, pingBytes));
    return { service: runOf(guest, 'ping'), c };
  },
};

const ringThroughput = (bytes: number, bar: number): Race => ({
  kind: 'race',
  metric: millionsPerSecond,
  sides: { ours: 'our ring', c: 'C, the same ring' },
  comparisons: [{ name: `ring throughput ${bytes} B`, ours: 'ours', baseline: 'c', bar }],
  async open(means) {
    const ring = means.baselines?.ring;
    const endsOf = (command: readonly string[]) =>
      [
        [...command, 'produce'],
        [...command, 'consume'],
      ] as const;
    const ours = runOf(await pair(means, 'apart', endsOf(ringProgram), bytes));
    const c = ring === undefined ? noCompiler : runOf(await pair(means, 'apart', endsOf([ring]), bytes));
    return { ours, c };
  },
});

/** Only the relay differs between both sides. Without a compiler the ends are ours as well. */
const relayHop = (bytes: number): Race => ({
  kind: 'race',
  metric: microseconds,
  sides: { loop: 'our relay', poll: 'our relay, waiting in poll(2)', c: 'C relay between the same ends' },
  comparisons: [
    { name: `relay hop ${bytes} B`, ours: 'loop', baseline: 'c', bar: 0.9, stretch: 0.95 },
    { name: `relay hop ${bytes} B, blocking wait`, ours: 'poll', baseline: 'c', bar: 0.9, stretch: 0.95 },
  ],
  async open(means) {
    const ring = means.baselines?.ring;
    const ends = ring === undefined ? ringProgram : [ring];
    const loop = runOf(await relayed(means, ends, [...relayProgram, 'loop'], bytes));
    const poll = runOf(await relayed(means, ends, [...relayProgram, 'poll'], bytes));
    const c = ring === undefined ? noCompiler : runOf(await relayed(means, [ring], [ring, 'relay'], bytes));
    return { loop, poll, c };
  },
});

export const messageItems: readonly Race[] = [
  roundTrip,
  ringThroughput(64, 0.2),
  ringThroughput(264, 0.36),
  relayHop(64),
  relayHop(264),
];
