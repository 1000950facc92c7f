import { fileURLToPath } from 'node:url';
import { type Comparison, gigabytesPerSecond, operationsPerSecond, type Race, type Run } from './item.ts';
import type { Placement } from './placement.ts';
import { startRunner } from './runner.ts';
import type { Metric } from './stats.ts';
import { dataPaths } from './world.ts';

const directProgram = fileURLToPath(new URL('./direct-program.js', import.meta.url));

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

const whatOf = ({ kind, bytes, depth }: Load): string => `${kind} ${bytes} ${depth}`;
/** One request at a time keeps one processor busy at most; many use what there is. */
const placementOf = ({ depth }: Load): Placement => (depth === 1 ? 'together' : 'free');

const sides = {
  'built-in': 'built-in disk',
  direct: 'qemu-storage-daemon of the service, direct',
  shadow: 'qemu-storage-daemon through the service, shadow',
  driver: 'the same driver on qemu-storage-daemon',
  libblkio: 'libblkio (C) on qemu-storage-daemon',
  c: 'C virtio-blk pair with eventfds',
};

function comparisonsOf({ name }: Load): Comparison[] {
  const bars = { direct: { bar: 0.97, stretch: 1 }, shadow: {} };
  const bridged = dataPaths.flatMap((ours) => [
    { name: `vhost-user ${ours} ${name}`, ours, baseline: 'driver', ...bars[ours] },
    { name: `vhost-user ${ours} ${name}, libblkio`, ours, baseline: 'libblkio' },
  ]);
  const builtIn = { ours: 'built-in', bar: 0.8 };
  return [
    { name: `blk tmpfs ${name}`, ...builtIn, baseline: 'driver', stretch: 1.2 },
    ...bridged,
    { name: `blk tmpfs ${name}, C pair`, ...builtIn, baseline: 'c' },
  ];
}

/** All ways to one image in memory, in turns: what was compared with what else is then known as well. */
const inMemory = (load: Load): Race => ({
  kind: 'race',
  metric: load.metric,
  sides,
  comparisons: comparisonsOf(load),
  async open({ scope, processors, baselines, world }, wanted) {
    const placement = placementOf(load);
    const { guest, disks, vhostUser, exports } = await world(placement);
    const what = whatOf(load);
    const start = async (command: readonly string[]): Promise<Run> => {
      const runner = await startRunner(processors.place(command, placement), scope);
      return (ms) => runner.run(what, ms);
    };
    const bridged = (device: number | string): Run | string =>
      typeof device === 'string' ? device : (ms) => guest.run(`blk ${device} ${what}`, ms);
    const opened: Record<string, Run | string> = {
      'built-in': (ms) => guest.run(`blk ${disks.tmpfs.device} ${what}`, ms),
      direct: bridged(vhostUser.direct),
      shadow: bridged(vhostUser.shadow),
    };
    if (wanted.has('driver')) {
      opened.driver =
        typeof exports === 'string' ? exports : await start([process.execPath, directProgram, exports.driver]);
    }
    if (wanted.has('libblkio')) {
      const library = baselines?.libblkio ?? 'no gcc';
      const missing = typeof exports === 'string' ? exports : undefined;
      if (typeof library === 'string' || typeof exports === 'string') opened.libblkio = missing ?? String(library);
      else opened.libblkio = await start([...library, exports.libblkio]);
    }
    if (wanted.has('c')) {
      opened.c = baselines === undefined ? 'no gcc' : await start([baselines.blk, disks.tmpfs.image]);
    }
    return opened;
  },
});

const onDisk = (load: Load): Race => ({
  kind: 'race',
  metric: load.metric,
  sides,
  comparisons: [
    { name: `blk disk ${load.name}`, ours: 'built-in', baseline: 'driver', bar: 0.8, stretch: 1.2 },
    { name: `blk disk ${load.name}, C pair`, ours: 'built-in', baseline: 'c', bar: 0.8 },
  ],
  async open({ scope, processors, baselines, world }) {
    const placement = placementOf(load);
    const { guest, disks, exports } = await world(placement);
    const { image, device } = disks.disk;
    const what = whatOf(load);
    const start = async (command: readonly string[]): Promise<Run> => {
      const runner = await startRunner(processors.place(command, placement), scope);
      return (ms) => runner.run(what, ms);
    };
    return {
      'built-in': (ms) => guest.run(`blk ${device} ${what}`, ms),
      driver:
        typeof exports === 'string' ? exports : await start([process.execPath, directProgram, exports['driver-disk']]),
      c: baselines === undefined ? 'no gcc' : await start([baselines.blk, image]),
    };
  },
});

export const blockItems: readonly Race[] = [...loads.map(inMemory), ...loads.map(onDisk)];
