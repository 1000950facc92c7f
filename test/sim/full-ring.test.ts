import assert from 'node:assert/strict';
import { it } from 'node:test';
import { SimGuest } from '../support/sim-guest.ts';
import { SimLoop } from '../support/sim-loop.ts';
import type { SimOutcome } from '../support/sim-regions.ts';
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
      const ping = (data: number) => guest.request(0, { kind: 'request', name: 'PING', body: { data } });
      guest.onPreempt = () =>
        void (outcomes.length < 12 && loop.random.chance(0.5) && outcomes.push(ping(outcomes.length)));
      for (let count = loop.random.below(8); count >= 0; count--) {
        outcomes.push(ping(outcomes.length));
        if (loop.random.chance(0.3)) await loop.sleep(guest.process, loop.random.below(100) / 50);
      }
      // More may come while these are answered.
      for (let i = 0; i < outcomes.length; i++) {
        const outcome = (await outcomes[i])!;
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
