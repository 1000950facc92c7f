import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Scope } from '../../src/kit/scope.ts';
import type { Baselines } from './compiler.ts';
import { linkArguments, makeLink } from './link.ts';
import type { Placement, Processors } from './placement.ts';
import { type Runner, startRunner } from './runner.ts';
import type { Metric, Sample } from './stats.ts';
import { type Place, places, type World } from './world.ts';

/** One side of a comparison: runs for about that long. */
export type Run = (milliseconds: number) => Promise<Sample>;

export interface Contenders {
  readonly ours: Run;
  readonly baseline: Run | null;
}

/** What an item may use. Programs end with the scope. */
export interface Means {
  readonly scope: Scope;
  /** Undefined without a compiler. */
  readonly baselines: Baselines | undefined;
  readonly processors: Processors;
  /** Service and guest at a place, started for the first item that asks. */
  world(placement: Placement): Promise<World>;
}

export interface Item {
  readonly name: string;
  readonly metric: Metric;
  readonly baselineName: string | null;
  /** The ratio we aim for, see docs/bench.md. */
  readonly bar: number | null;
  open(means: Means): Promise<Contenders>;
}

const microseconds: Metric = { kind: 'time', unit: 'us', scale: 1e6 };
const milliseconds: Metric = { kind: 'time', unit: 'ms', scale: 1e3 };
const millionsPerSecond: Metric = { kind: 'rate', unit: 'M/s', scale: 1e-6 };
const operationsPerSecond: Metric = { kind: 'rate', unit: 'IOPS', scale: 1 };
const gigabytesPerSecond = (bytes: number): Metric => ({ kind: 'rate', unit: 'GB/s', scale: bytes / 1e9 });

const pingBytes = 12;
const ringProgram = [process.execPath, fileURLToPath(new URL('./ring-program.js', import.meta.url))];
const relayProgram = [process.execPath, fileURLToPath(new URL('./relay-program.js', import.meta.url))];

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

const roundTrip: Item = {
  name: 'message round trip',
  metric: microseconds,
  baselineName: 'C ring and doorbell, two processes',
  bar: 0.6,
  async open(means) {
    const { guest } = await means.world('together');
    const ring = means.baselines?.ring;
    const ends = [
      [ring ?? '', 'ping'],
      [ring ?? '', 'echo'],
    ] as const;
    const c = ring === undefined ? undefined : await pair(means, 'together', ends, pingBytes);
    return { ours: runOf(guest, 'ping'), baseline: c === undefined ? null : runOf(c) };
  },
};

const ringThroughput = (bytes: number, bar: number): Item => ({
  name: `ring throughput ${bytes} B`,
  metric: millionsPerSecond,
  baselineName: 'C, the same ring',
  bar,
  async open(means) {
    const ring = means.baselines?.ring;
    const endsOf = (command: readonly string[]) =>
      [
        [...command, 'produce'],
        [...command, 'consume'],
      ] as const;
    const ours = await pair(means, 'apart', endsOf(ringProgram), bytes);
    const c = ring === undefined ? undefined : await pair(means, 'apart', endsOf([ring]), bytes);
    return { ours: runOf(ours), baseline: c === undefined ? null : runOf(c) };
  },
});

/** Only the relay differs between both sides. Without a compiler the ends are ours as well. */
const relayHop = (bytes: number): Item => ({
  name: `relay hop ${bytes} B`,
  metric: microseconds,
  baselineName: 'C relay between the same ends',
  bar: 0.92,
  async open(means) {
    const ring = means.baselines?.ring;
    const ours = await relayed(means, ring === undefined ? ringProgram : [ring], relayProgram, bytes);
    const c = ring === undefined ? undefined : await relayed(means, [ring], [ring, 'relay'], bytes);
    return { ours: runOf(ours), baseline: c === undefined ? null : runOf(c) };
  },
});

interface Load {
  readonly name: string;
  readonly kind: 'read' | 'write';
  readonly bytes: number;
  readonly depth: number;
  readonly metric: Metric;
}

const small = 4096;
const large = 128 * 1024;
const loads: readonly Load[] = (['read', 'write'] as const).flatMap((kind) => [
  { name: `4K QD1 ${kind}`, kind, bytes: small, depth: 1, metric: operationsPerSecond },
  { name: `4K QD32 ${kind}`, kind, bytes: small, depth: 32, metric: operationsPerSecond },
  { name: `128K QD32 ${kind}`, kind, bytes: large, depth: 32, metric: gigabytesPerSecond(large) },
]);

const blk = (place: Place, load: Load): Item => ({
  name: `blk ${place} ${load.name}`,
  metric: load.metric,
  baselineName: 'C virtio-blk pair with eventfds',
  bar: 0.8,
  async open({ scope, processors, baselines, world }) {
    // One request at a time keeps one processor busy at most; many use what there is.
    const placement = load.depth === 1 ? 'together' : 'free';
    const { guest, disks } = await world(placement);
    const { image, device } = disks[place];
    const what = `${load.kind} ${load.bytes} ${load.depth}`;
    const c = baselines && (await startRunner(processors.place([baselines.blk, image], placement), scope));
    return { ours: runOf(guest, `blk ${device} ${what}`), baseline: c === undefined ? null : runOf(c, what) };
  },
});

const attachLatency: Item = {
  name: 'attach latency',
  metric: milliseconds,
  baselineName: null,
  bar: null,
  async open({ world }) {
    const { guest } = await world('free');
    return { ours: runOf(guest, 'attach'), baseline: null };
  },
};

export const items: readonly Item[] = [
  roundTrip,
  ringThroughput(64, 0.2),
  ringThroughput(264, 0.36),
  relayHop(64),
  relayHop(264),
  ...places.flatMap((place) => loads.map((load) => blk(place, load))),
  attachLatency,
];
