import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type SimMode, type SimStatistics, SimWorld } from '../support/sim-world.ts';

/*
 * `SIM_SEED=17 SIM_MODE=clean` replays one world and prints what happened last in it; `SIM_WORLDS` runs another
 * number of them, `SIM_FIRST` begins with another seed.
 */
const { SIM_SEED, SIM_MODE, SIM_WORLDS, SIM_FIRST } = process.env;
const stepsPerWorld = 2000;

async function runWorld(seed: number, mode: SimMode): Promise<SimStatistics> {
  const world = new SimWorld(seed, mode);
  const violation = await world.run(stepsPerWorld);
  const replay = `replay with SIM_SEED=${seed} SIM_MODE=${mode}`;
  assert.equal(violation, undefined, `${violation}\n${replay}\n${world.loop.trail.join('\n')}`);
  return world.statistics;
}

async function runWorlds(mode: SimMode, count: number): Promise<SimStatistics> {
  const total: Record<string, number> = {};
  const first = SIM_SEED === undefined ? Number(SIM_FIRST ?? 1) : Number(SIM_SEED);
  const worlds = SIM_SEED === undefined ? Number(SIM_WORLDS ?? count) : 1;
  for (let seed = first; seed < first + worlds; seed++) {
    for (const [name, value] of Object.entries(await runWorld(seed, mode))) total[name] = (total[name] ?? 0) + value;
  }
  return total as unknown as SimStatistics;
}

/** A run of all worlds has to have seen at least this, or it proves little. */
const leastClean: Partial<SimStatistics> = {
  ios: 15_000,
  requests: 10_000,
  resets: 800,
  queueResets: 60,
  resumes: 200,
  kills: 80,
  shutdowns: 80,
  guestDeaths: 80,
  hotplugs: 80,
};

const isWanted = (mode: SimMode): boolean => SIM_MODE === undefined || SIM_MODE === mode;

describe('simulated worlds', () => {
  it('keep every promise to well-behaved guests', async (t) => {
    if (!isWanted('clean')) return;
    const total = await runWorlds('clean', 120);
    t.diagnostic(JSON.stringify(total));
    if (SIM_SEED !== undefined || SIM_WORLDS !== undefined) return;
    for (const [name, least] of Object.entries(leastClean)) {
      const reached = total[name as keyof SimStatistics];
      assert.ok(reached >= least, `${name}: ${reached}, at least ${least} are needed`);
    }
  });

  it('lose messages, and requests still end', async (t) => {
    if (!isWanted('lossy')) return;
    t.diagnostic(JSON.stringify(await runWorlds('lossy', 25)));
  });

  it('spoil messages, and nothing else breaks', async (t) => {
    if (!isWanted('corrupting')) return;
    t.diagnostic(JSON.stringify(await runWorlds('corrupting', 25)));
  });
});
