import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Scope } from '../../src/kit/scope.ts';
import { type Gauge, type Means, microseconds, type Race } from './item.ts';
import type { Placement } from './placement.ts';
import { type Runner, startRunner } from './runner.ts';
import { type Service, startService } from './service.ts';
import { quantile } from './stats.ts';
import { attachBackend } from './world.ts';

const manyProgram = fileURLToPath(new URL('./many-program.js', import.meta.url));
/** Buses are limited to 256 devices. */
const buses = 4;
const devices = 1000;

interface Crowd {
  readonly service: Service;
  readonly guest: Runner;
}

/** A service with idle devices of a simple kind, spread over buses, all with a driver that is ready. */
async function crowd(count: number, placement: Placement, { processors }: Means, scope: Scope): Promise<Crowd> {
  const placed = (command: readonly string[]) => processors.place(command, placement);
  const names = Array.from({ length: buses }, (_, i) => `bus${i}`);
  const ids = Array.from({ length: count }, (_, i) => i);
  const of = <T>(list: readonly (number | string)[], value: (each: never) => T): Record<string, T> =>
    Object.fromEntries(list.map((each) => [`${each}`, value(each as never)]));
  const content = {
    domains: of(names, () => ({})),
    buses: of(names, (name: string) => ({ domain: name, transport: 'loopback', role: 'driver' })),
    backends: of(
      ids.map((id) => `rng${id}`),
      () => ({ type: 'rng' }),
    ),
    attachments: Object.fromEntries(
      ids.map((id) => {
        const deviceNumber = Math.floor(id / buses);
        return [`rng${id}`, { bus: names[id % buses], backend: `rng${id}`, deviceNumber }];
      }),
    ),
  };
  const service = await startService(content, placed, scope);
  const guest = await startRunner(placed([process.execPath, manyProgram, ...names.map(service.busSocket)]), scope);
  return { service, guest };
}

const counts = [1, 100, devices] as const;
const sideOf = (count: number): string => `${count} ${count === 1 ? 'device' : 'devices'}`;

const messageCost: Race = {
  kind: 'race',
  metric: microseconds,
  sides: Object.fromEntries(counts.map((count) => [sideOf(count), sideOf(count)])),
  comparisons: counts.slice(1).map((count) => ({
    name: `message with ${count} devices`,
    ours: sideOf(count),
    baseline: sideOf(1),
    bar: 0.95,
    stretch: 0.99,
  })),
  async open(means, wanted) {
    const opened: Record<string, (ms: number) => ReturnType<Runner['run']>> = {};
    for (const count of counts.filter((each) => wanted.has(sideOf(each)))) {
      const { guest } = await crowd(count, 'together', means, means.scope);
      opened[sideOf(count)] = (ms) => guest.run('', ms);
    }
    return opened;
  },
};

const attaches = 400;
const attachesQuick = 60;
const attachesWarmUp = 40;

const attachTime: Gauge = {
  kind: 'gauge',
  values: [
    { name: 'attach to driver-ready, p50', unit: 'ms', bar: 5, stretch: 2 },
    { name: 'attach to driver-ready, p99', unit: 'ms', bar: 20, stretch: 5 },
  ],
  async measure({ world, quick }) {
    const { guest } = await world('free');
    await guest.ask(`attach ${attachBackend} ${attachesWarmUp}`);
    const answer = await guest.ask(`attach ${attachBackend} ${quick ? attachesQuick : attaches}`);
    const times = answer.split(' ').map(Number);
    return [quantile(times, 0.5), quantile(times, 0.99)];
  },
};

/** Proportional set size: pages that are shared with other processes count in part. */
function memoryKiB(pid: number): number {
  return Number(/^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1]);
}

/** Processor time of all threads in nanoseconds (schedstat, first field). */
function processorNs(pid: number): number {
  let sum = 0;
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    sum += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]);
  }
  return sum;
}

const settleMs = 4000;
const idleSamples = 6;
const idleSampleMs = 2000;

async function idleCrowd(count: number, means: Means): Promise<number> {
  const { service } = await crowd(count, 'free', means, means.scope);
  await sleep(settleMs);
  return service.pid;
}

const idle: Gauge = {
  kind: 'gauge',
  values: [
    { name: 'memory per idle attachment', unit: 'KiB', bar: 100, stretch: 30 },
    { name: `processor, idle with ${devices} attachments`, unit: '% of a core', bar: 1, stretch: 0.1 },
  ],
  async measure(means) {
    const none = memoryKiB(await idleCrowd(0, means));
    const pid = await idleCrowd(devices, means);
    const shares: number[] = [];
    const kib: number[] = [];
    while (shares.length < idleSamples) {
      const [before, start] = [processorNs(pid), performance.now()];
      await sleep(idleSampleMs);
      shares.push(((processorNs(pid) - before) / 1e6 / (performance.now() - start)) * 100);
      kib.push((memoryKiB(pid) - none) / devices);
    }
    return [quantile(kib, 0.5), quantile(shares, 0.5)];
  },
};

export const scaleRaces: readonly Race[] = [messageCost];
export const scaleGauges: readonly Gauge[] = [attachTime, idle];
