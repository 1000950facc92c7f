import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, deviceInfo, RngDriver, VmsgError } from '../../../src/guest/index.ts';
import { VersionedLoad } from '../../support/versioned-load.ts';
import { openBus, orderOf, pauseMs, say, untilStopped } from './bus.ts';

/** Keeps every disk and entropy device of its bus busy from when it arrives until it leaves. Its order is a BusOrder. */
export type FollowerLine =
  | { readonly type: 'taken'; readonly device: number; readonly kind: string }
  /** With the code of what its requests failed with. */
  | { readonly type: 'left'; readonly device: number; readonly kind: string; readonly code: string }
  /** `device` is the disk of now. */
  | { readonly type: 'progress'; readonly device: number; readonly acknowledged: number; readonly random: number }
  | { readonly type: 'reconnected'; readonly resumed: boolean }
  /** About the last disk. */
  | { readonly type: 'end'; readonly submitted: number; readonly acknowledged: number; readonly versions: number[] };

const blocks = 64;
const lanes = 8;
const progressMs = 200;

const line = (value: FollowerLine): void => say(value);
const bus = await openBus(orderOf());
const users = new Set<Promise<void>>();
let current = { device: -1, load: undefined as VersionedLoad | undefined };
let random = 0;
let going = true;

async function useDisk(device: number): Promise<void> {
  const disk = await BlkDriver.open(bus, device, { depth: lanes });
  try {
    const load = new VersionedLoad(disk, blocks, pauseMs);
    current = { device, load };
    line({ type: 'taken', device, kind: 'blk' });
    await load.run(lanes);
  } finally {
    await disk.close();
  }
}

async function useEntropy(device: number): Promise<void> {
  const rng = await RngDriver.open(bus, device);
  try {
    line({ type: 'taken', device, kind: 'rng' });
    for (; going; await sleep(5 * pauseMs)) random += (await rng.read(64)).length;
  } finally {
    await rng.close();
  }
}

async function follow(device: number): Promise<void> {
  let kind = 'unknown';
  try {
    kind = (await deviceInfo(bus, device)).name;
    await (kind === 'blk' ? useDisk(device) : useEntropy(device));
  } catch (error) {
    line({ type: 'left', device, kind, code: error instanceof VmsgError ? error.code : String(error) });
  }
}

bus.on('reconnected', ({ resumed }) => line({ type: 'reconnected', resumed }));
bus.on('added', ({ device }) => void users.add(follow(device)));
for (const device of await bus.devices()) users.add(follow(device));
const timer = setInterval(() => {
  line({ type: 'progress', device: current.device, acknowledged: current.load?.acknowledged ?? 0, random });
}, progressMs);
await untilStopped();
going = false;
current.load?.stop();
await Promise.all(users);
clearInterval(timer);
const { submitted = 0, acknowledged = 0, versions = [] } = current.load ?? {};
line({ type: 'end', submitted, acknowledged, versions });
bus.close();
