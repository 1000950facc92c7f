import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Closable, Scope } from '../../src/kit/scope.ts';
import { type Domid, type Hypervisor, HypervisorFault } from '../../src/ports/hypervisor.ts';

/** A process of one side that can be killed without a chance to clean up. */
export interface Victim {
  /** Binds to `remotePort`, maps a page of `domid` with a notice about `byte`, and stores 1 there. */
  map(domid: Domid, reference: number, byte: number, remotePort: number): Promise<void>;
  /** Makes a port for `domid`, shares a page with a notice about `byte`, and stores 1 there. */
  share(domid: Domid, byte: number): Promise<{ readonly reference: number; readonly port: number }>;
  kill(): Promise<void>;
}

export interface HypervisorSide {
  readonly domid: Domid;
  readonly hypervisor: Hypervisor;
  victim(): Promise<Victim>;
}

/** Two sides that may be one domain; `guest` shares, `service` maps and is privileged. */
export interface HypervisorBench extends Closable {
  readonly guest: HypervisorSide;
  readonly service: HypervisorSide;
  /** What is open; a test has to leave it as it was. */
  census(): unknown;
}

export type MakeBench = () => HypervisorBench;

/** Runs `run` and checks that nothing is left; what is given to `own` is closed, twice. */
export async function withBench(
  make: MakeBench,
  run: (bench: HypervisorBench, own: <T extends Closable>(resource: T) => T) => Promise<void> | void,
): Promise<void> {
  const bench = make();
  const before = bench.census();
  const scope = new Scope();
  try {
    await run(bench, (resource) => {
      scope.own({ close: () => resource.close() });
      return scope.own(resource);
    });
    scope.close();
    await until('everything is closed', () => isSame(bench.census(), before));
  } finally {
    scope.close();
    bench.close();
  }
}

function isSame(one: unknown, other: unknown): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

const waitMaxMs = 10_000;

export async function until(what: string, holds: () => boolean): Promise<void> {
  for (const end = Date.now() + waitMaxMs; !holds(); ) {
    assert.ok(Date.now() < end, `waited too long: ${what}`);
    await sleep(2);
  }
}

/** Turns of the event loop in which events that are under way arrive. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 10; turn++) await sleep(2);
}

export function granted<T>(result: T | HypervisorFault): T {
  if (result instanceof HypervisorFault) assert.fail(`refused: ${JSON.stringify(result)}`);
  return result;
}

export function refused(result: unknown): HypervisorFault {
  assert.ok(result instanceof HypervisorFault, 'was not refused');
  return result;
}
