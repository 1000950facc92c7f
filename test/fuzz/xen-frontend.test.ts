import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { readFrontend } from '../../src/bridge/bus/xen/frontend.ts';
import { limits } from '../../src/kit/limits.ts';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import { frontendNodes } from '../../src/virtio-msg/xen-bus.ts';
import { HypervisorError } from '../../src/xen/errors.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { needed } from '../support/bridge-bench.ts';
import { SeededRandom } from '../support/random.ts';
import { XenBench } from '../support/xen-bench.ts';
import { grantedRingPage } from '../support/xen-driver.ts';
import type { XenFrontend } from '../support/xen-frontend.ts';

const zero = asDomid(0)!;
const nodeNames = Object.keys(frontendNodes);
const numbers = ['0', '1', '2', '3', '4', '5', '6', '8', '9', '10', '64', '65535', '65536', '4294967295', '4294967296'];
const junk = [
  '',
  ' ',
  '-1',
  '01',
  '1.5',
  '0x8',
  '1e9',
  'NaN',
  'true',
  '8 9',
  '8  9',
  ' 8',
  '8 ',
  '9'.repeat(500),
  '\u0000',
  'ü',
];

const value = fc.oneof(
  fc.constantFrom(undefined, ...numbers, ...junk),
  fc.string({ unit: 'binary', maxLength: 300 }),
  fc.array(fc.constantFrom(...numbers, ...junk), { maxLength: 20 }).map((list) => list.join(' ')),
  fc.bigInt({ min: 0n, max: 1n << 70n }).map(String),
  fc.constantFrom('0'.repeat(32), 'f'.repeat(32), 'g'.repeat(32)),
);

test('any nodes at all: a checked answer, or one short line that says why not', () => {
  const terms = { dialect: 5, maxMessageSizeBytes: 264 };
  const nodes = fc.dictionary(fc.constantFrom(...nodeNames), value, { noNullPrototype: true });
  const plausible = fc.record(
    {
      version: fc.constantFrom('1', '1', '1', '2'),
      dialect: fc.constantFrom('5', '5', '5', '4'),
      'max-message-size': fc.constantFrom('52', '64', '51', '4294967295'),
      'ring-to-service-refs': fc.constantFrom('8', '8 9 10', '8 8'),
      'ring-to-guest-refs': fc.constantFrom('11', '11 12', '8', '0'),
      'event-channel': fc.constantFrom('1', '77', '0'),
    },
    { noNullPrototype: true },
  );
  let accepted = 0;
  fc.assert(
    fc.property(plausible, nodes, fc.boolean(), (good, hostile, mixed) => {
      const all: Record<string, string | undefined> = mixed ? { ...good, ...hostile } : { ...hostile, ...good };
      const answer = readFrontend((node) => all[node], terms);
      if (typeof answer === 'string') {
        // Control characters of a guest have no place in logs and terminals.
        assert.match(answer, /^[\x20-\x7e]{1,400}$/);
        return;
      }
      accepted += 1;
      const { toService, toGuest, maxMessageSize, port, claim } = answer;
      for (const ring of [toService, toGuest]) assert.ok(ring.length >= 1 && ring.length <= limits.xenRingMaxPages);
      const references = [...toService, ...toGuest];
      assert.ok(references.every((reference) => reference > 0) && new Set(references).size === references.length);
      assert.ok(maxMessageSize >= limits.messageSizeMinBytes && maxMessageSize <= terms.maxMessageSizeBytes);
      assert.ok(port >= 1 && claim.token.length === 16 && claim.epoch >= 0n && claim.epoch < 1n << 64n);
    }),
    { seed: 20260401, numRuns: 4000 },
  );
  assert.ok(accepted > 50, `${accepted} were accepted`);
});

/** A device that completes what it gets. */
function automatic(): FakeBackend {
  const backend = new FakeBackend();
  backend.automatic = 0;
  return backend;
}

/** A guest that does anything a guest can do, and whose processes come and go. */
class HostileGuest {
  readonly #b: XenBench;
  readonly #random: SeededRandom;
  #frontend: XenFrontend;
  #ready = false;

  constructor(b: XenBench, random: SeededRandom) {
    this.#b = b;
    this.#random = random;
    this.#frontend = b.frontend();
    this.#frontend.strict = false;
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#random.below(list.length)]!;
  }

  #value(): string | undefined {
    const refs = (): string => String(8 + this.#random.below(12));
    switch (this.#random.below(5)) {
      case 0:
        return undefined;
      case 1:
        return this.#pick(junk).replaceAll('\u0000', '');
      case 2:
        return Array.from({ length: 1 + this.#random.below(18) }, refs).join(' ');
      case 3:
        return refs();
      default:
        return this.#pick(numbers);
    }
  }

  /** One hostile step. What xenstored refuses to a guest is no concern of the service. */
  step(): void {
    try {
      this.#anything(this.#random.below(16));
    } catch (error) {
      if (!(error instanceof HypervisorError)) throw error;
    }
  }

  #anything(kind: number): void {
    const guest = this.#frontend;
    switch (kind) {
      case 0:
      case 1:
        guest.write(this.#pick(nodeNames), this.#value());
        return;
      case 2:
      case 3:
        guest.write('state', String(this.#random.below(8)));
        return;
      case 4:
      case 5:
      case 6:
        guest.prepare();
        this.#ready = true;
        guest.submit({ ...guest.answer(), ...(kind === 4 ? { [this.#pick(nodeNames)]: this.#value() } : {}) });
        return;
      case 7:
        guest.xenstore.remove(guest.path);
        return;
      case 8:
        guest.xenstore.setPermissions(guest.path, [
          { domid: guest.domid, access: this.#pick(['none', 'both', 'read']) },
        ]);
        return;
      case 9:
        this.#b.advance(this.#pick([0, 1, 20, 300, 1500]));
        return;
      case 10:
        guest.process.kill();
        this.renew();
        return;
      case 11:
        this.#b.kill();
        this.#b.start((runtime) => void this.#b.attach(runtime, automatic()));
        return;
      default:
        if (this.#ready) this.#connected(kind);
    }
  }

  /** Steps that need rings and a port. */
  #connected(kind: number): void {
    const guest = this.#frontend;
    switch (kind) {
      case 12:
        guest.words[this.#pick([0, 16, 17, 18])] = this.#pick([0, 1, 62, 63, 0xffff_ffff]);
        guest.ring();
        return;
      case 13:
        guest.aliveGuest = this.#random.below(3);
        guest.ring();
        return;
      default:
        this.#message();
    }
  }

  #message(): void {
    if (this.#b.snapshot.state !== 'connected') return;
    const guest = this.#frontend;
    const reference = this.#random.below(40);
    switch (this.#random.below(5)) {
      case 0: {
        const area = this.#random.below(5);
        const length = BigInt(4096 * this.#random.below(5));
        const domain = this.#pick([0, 0, 0, 1, 2, 0xffff]);
        guest.request('REGION_ADD', { peer: 0, area, flags: 0, reference, domain, offset: 0n, length });
        return;
      }
      case 1:
        guest.request('REGION_DEL', { peer: 0, area: this.#random.below(5), reserved: 0 });
        return;
      case 2:
        guest.request('GRANT_RELEASE', { first: reference, count: this.#random.below(4) });
        return;
      case 3: {
        const queue = this.#random.below(3);
        guest.request('QUEUE_NOTIFY', { device: 0, queue, flags: 3, kick: reference, call: reference + 1 });
        return;
      }
      default:
        this.#useQueue(guest);
    }
  }

  /** Sets a queue up in a granted page, or in none, and makes a descriptor of anything available. */
  #useQueue(guest: XenFrontend): void {
    const { bytes, address } = grantedRingPage(guest);
    const words = Uint32Array.from(
      { length: bytes.length / 4 },
      () => this.#random.u32() & this.#pick([0x8000_ffff, 0xff, 3]),
    );
    new Uint32Array(bytes.buffer, bytes.byteOffset, words.length).set(words);
    const base = this.#pick([address, address, (1n << 63n) | BigInt(this.#random.below(1 << 20) << 12), 1n << 48n]);
    for (const status of [0, 3]) guest.request('SET_DEVICE_STATUS', { status }, 0);
    guest.request(
      'SET_DRIVER_FEATURES',
      { blockIndex: 0, blockCount: 2, blocks: FeatureSet.of(...needed).toBlocks(2) },
      0,
    );
    guest.request('SET_DEVICE_STATUS', { status: 11 }, 0);
    const addresses = { descAddr: base, driverAddr: base + 1024n, deviceAddr: base + 2048n };
    guest.request('SET_VQUEUE', { index: 0, flags: 1, size: 8, reserved: 0, ...addresses }, 0);
    guest.request('SET_DEVICE_STATUS', { status: 15 }, 0);
    guest.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, 0);
  }

  renew(): XenFrontend {
    this.#frontend = this.#b.frontend();
    this.#frontend.strict = false;
    this.#ready = false;
    return this.#frontend;
  }

  /** The domain gets a guest that keeps to the protocol. */
  reform(): XenFrontend {
    this.#frontend.process.kill();
    this.#b.run();
    this.#b.advance(2 * limits.xenDirectoryPauseMs);
    const guest = this.renew();
    guest.strict = true;
    // Nobody repairs single nodes that a guest has spoilt; the directory as a whole is made again.
    if (guest.node('backend') !== '/local/domain/0/backend/vmsg/1/0') {
      guest.xenstore.remove(guest.path);
      this.#b.run();
      this.#b.advance(2 * limits.xenDirectoryPauseMs);
    } else guest.setState(1);
    this.#b.advance(2 * limits.xenDirectoryPauseMs);
    return guest.connect();
  }
}

describe('a hostile guest on a Xen bus', () => {
  const reached = { 'bus-connected': 0, 'bus-disconnected': 0, 'bus-refused': 0, 'bus-diagnosis': 0 };
  for (let seed = 1; seed <= 60; seed++) {
    test(`seed ${seed}: the next good guest is served, and nothing stays`, async () => {
      const b = new XenBench();
      const random = new SeededRandom(seed * 7919);
      b.start((runtime) => void b.attach(runtime, automatic()));
      const hostile = new HostileGuest(b, random);
      for (let i = 0; i < 120; i++) {
        hostile.step();
        if (random.below(3) === 0) b.run();
      }
      for (const { type } of b.events) if (type in reached) reached[type as keyof typeof reached] += 1;
      const guest = hostile.reform();
      assert.equal(guest.ask('PING', { data: seed }).data, seed);
      assert.deepEqual(b.xen.census(zero).channels, 1);
      await b.end();
    });
  }

  test('the seeds lead everywhere', () => {
    for (const [what, times] of Object.entries(reached)) assert.ok(times >= 10, `${what}: ${times}`);
  });
});
