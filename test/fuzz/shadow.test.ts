import assert from 'node:assert/strict';
import { test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import type { CanonicalMessage } from '../../src/virtio-msg/dialect.ts';
import { TestRequest } from '../support/bridge-request.ts';
import { SeededRandom } from '../support/random.ts';
import { ShadowBench } from '../support/shadow-bench.ts';

const rounds = 100;
const stepsPerRound = 400;
const queues = 3;
/** Rings and their surroundings: garbage there hurts most. */
const ringBytes = 16 * 1024;

const turn = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(resolve);
  });

/** A driver that keeps to what the bridge's device does with a backend, against a serving side that keeps to nothing. */
class Round {
  readonly random: SeededRandom;
  readonly bench: ShadowBench;
  readonly open = new Set<TestRequest>();
  readonly ended = { completed: 0, released: 0, failures: 0, activations: 0, tampered: 0, garbage: 0 };
  active = false;
  failed = 0;

  constructor(seed: number) {
    this.random = new SeededRandom(seed);
    this.bench = new ShadowBench({ queueSizes: [16, 8, 64], featureBits: [0, 1, 60] });
  }

  async run(): Promise<void> {
    const { bench, random } = this;
    bench.backend = await bench.openBackend();
    bench.tamper = (message) => this.#tampered(message);
    for (let step = 0; step < stepsPerRound; step++) {
      this.#drive();
      this.#misbehave();
      this.#collect();
      if (random.below(3) === 0) await turn();
      if (random.below(10) === 0) bench.clock.advance(random.below(200));
      if (random.below(150) === 0) bench.clock.advance(limits.requestTimeoutMs);
    }
    await this.#end();
  }

  #drive(): void {
    const { bench, random } = this;
    // A device that failed is reset by its driver, some time later.
    if (bench.failures.length > this.failed && random.below(4) === 0) this.#reset();
    if (!this.active) {
      if (random.below(4) > 0) return;
      this.active = true;
      this.ended.activations += 1;
      this.failed = bench.failures.length;
      bench.backend.activate((bit) => bit === 60);
      return;
    }
    if (random.below(60) === 0) this.#reset();
    else if (random.below(25) === 0) this.#cancel(random.below(queues));
    else if (random.below(40) === 0) void bench.backend.writeConfig(random.below(40), new Uint8Array(1));
    else if (this.open.size < 60 && bench.failures.length === this.failed) this.#submit();
  }

  #submit(): void {
    const { random } = this;
    const lengths = (most: number): number[] => Array.from({ length: random.below(most) }, () => random.below(3000));
    const readable = lengths(4).map((length) => new Uint8Array(length).fill(random.below(256)));
    const request = new TestRequest(readable, lengths(4), random.below(queues));
    this.open.add(request);
    this.bench.backend.handle(request);
  }

  #cancel(queue: number): void {
    this.bench.backend.cancel?.(queue, false);
    for (const request of this.open) {
      if (request.queue === queue) assert.equal(request.completions, 1, 'nothing of a queue that stopped is out');
    }
  }

  #reset(): void {
    for (let queue = 0; queue < queues; queue++) this.#cancel(queue);
    this.bench.backend.deactivate();
    this.active = false;
  }

  #tampered(message: CanonicalMessage): CanonicalMessage | undefined {
    const { random } = this;
    if (random.below(30) > 0) return message;
    this.ended.tampered += 1;
    if (random.below(3) === 0) return undefined;
    const body: Record<string, unknown> = { ...message.body };
    for (const [name, value] of Object.entries(body)) {
      if (random.below(2) === 0) continue;
      if (typeof value === 'number') body[name] = random.below(2) === 0 ? random.u32() : random.below(70);
      else if (typeof value === 'bigint') body[name] = BigInt(random.u32()) << BigInt(random.below(32));
      else if (value instanceof Uint8Array) body[name] = new Uint8Array(random.below(64)).fill(random.below(256));
    }
    return { ...message, body } as CanonicalMessage;
  }

  #misbehave(): void {
    const { bench, random } = this;
    const { memory, device } = bench;
    if (memory !== undefined && random.below(12) === 0) {
      this.ended.garbage += 1;
      const at = random.below(3) === 0 ? random.below(memory.length - 64) : random.below(ringBytes);
      for (let i = 0; i < 1 + random.below(8); i++)
        memory[at + i] = random.below(4) === 0 ? random.below(256) : random.below(3);
    }
    if (random.below(3) === 0) {
      bench.say({ kind: 'event', name: 'EVENT_USED', body: { index: random.below(queues + 2) } });
    }
    if (random.below(40) === 0) {
      const data = new Uint8Array(random.below(50));
      const body = {
        status: random.below(64),
        generation: random.u32(),
        offset: random.u32(),
        length: data.length,
        data,
      };
      bench.say({ kind: 'event', name: 'EVENT_CONFIG', body });
    }
    const held = device.held.shift();
    if (held === undefined) return;
    if (random.below(8) === 0) device.held.push(held);
    else {
      for (const part of held.writable) part.fill(random.below(256));
      held.complete(random.below(held.writableBytes + 1));
    }
  }

  #collect(): void {
    for (const request of this.open) {
      if (request.completions === 0) continue;
      this.open.delete(request);
      this.ended[request.released ? 'released' : 'completed'] += 1;
    }
  }

  async #end(): Promise<void> {
    const { bench } = this;
    bench.tamper = (message) => message;
    if (this.active) this.#reset();
    this.#collect();
    assert.equal(this.open.size, 0, 'every request has ended once');
    const closing = bench.backend.close();
    for (let ms = 0; ms < 3 * limits.requestTimeoutMs; ms += 1000) {
      await turn();
      bench.clock.advance(1000);
    }
    await closing;
    assert.ok(bench.memoryClosed);
    for (let ms = 0; ms <= limits.resetTimeoutMs; ms += 1000) {
      await turn();
      bench.clock.advance(1000);
    }
    await turn();
    assert.equal(bench.clock.timers, 0, 'nothing is planned');
    this.ended.failures = bench.failures.length;
    for (const reason of bench.failures) assert.match(reason, /^device 3 of the serving side: ./);
  }
}

test(`${rounds * stepsPerRound} steps against a hostile serving side end every request once and break nothing`, async (t) => {
  const total = { completed: 0, released: 0, failures: 0, activations: 0, tampered: 0, garbage: 0 };
  for (let seed = 1; seed <= rounds; seed++) {
    const round = new Round(seed);
    await round.run();
    for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += round.ended[key];
  }
  t.diagnostic(JSON.stringify(total));
  for (const [name, count] of Object.entries(total)) assert.ok(count > 50, `${name}: ${count}`);
});
