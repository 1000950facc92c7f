import assert from 'node:assert/strict';
import { it } from 'node:test';
import { SimGuest, type SimOutcome } from '../support/sim-guest.ts';
import { SimLoop } from '../support/sim-loop.ts';
import { SimBus, SimService } from '../support/sim-service.ts';

const seeds = 400;
const burstsPerSeed = 20;

/** One guest that only asks, in bursts, over rings of a few slots: nothing else ever wakes either side. */
async function runBursts(seed: number): Promise<number> {
  const loop = new SimLoop(seed);
  const bus = new SimBus(loop, 'bus', 64);
  const service = new SimService(loop, 'service', [bus], new Map());
  void service.start();
  const guest = new SimGuest(loop, 'guest', {
    bus,
    noise: { drop: 0, corrupt: 0 },
    identify: () => undefined,
    probe: () => assert.fail('the bus has no devices'),
  });
  let bursts = 0;
  const ask = async (): Promise<void> => {
    while (!guest.isConnected) await loop.sleep(guest.process, 1);
    for (; bursts < burstsPerSeed; bursts++) {
      const outcomes: Array<Promise<SimOutcome>> = [];
      for (let data = loop.random.below(8); data >= 0; data--) {
        outcomes.push(guest.request(0, { kind: 'request', name: 'PING', body: { data } }));
        if (loop.random.chance(0.3)) await loop.sleep(guest.process, loop.random.below(100) / 50);
      }
      for (const [i, outcome] of (await Promise.all(outcomes)).reverse().entries()) {
        loop.check(outcome.kind === 'response' && outcome.body.data === i, `ping ${i} ended with ${outcome.kind}`);
      }
    }
  };
  void ask();
  while (bursts < burstsPerSeed && loop.violation === undefined && (await loop.step()));
  assert.equal(loop.violation, undefined, `seed ${seed}: ${loop.violation}`);
  return bursts;
}

it('a full ring in either direction stops neither side for ever', async () => {
  for (let seed = 1; seed <= seeds; seed++) assert.equal(await runBursts(seed), burstsPerSeed, `seed ${seed}`);
});
