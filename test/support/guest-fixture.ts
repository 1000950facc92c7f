import assert from 'node:assert/strict';
import { type BusOptions, connect, type GuestBus, type LoopbackOptions, VmsgError } from '../../src/guest/index.ts';
import { census } from '../../src/libc/census.ts';
import { GuestPeer, type PeerOptions } from './guest-peer.ts';
import { PeerBus } from './guest-peer-device.ts';
import { settledCensus } from './settled-census.ts';

export const isCode =
  (code: string, text = /./) =>
  (error: unknown) => {
    assert(error instanceof VmsgError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, text);
    return true;
  };

export interface Bench {
  readonly peer: GuestPeer;
  readonly model: PeerBus;
  connect(options?: Partial<BusOptions & LoopbackOptions>): Promise<GuestBus>;
}

/** Waits for what other turns of the loop bring about; bounded, so that a miss is a failure and not a hang. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (let turn = 0; turn < 5000 && !condition(); turn++) await new Promise((resolve) => setTimeout(resolve, 1));
  assert(condition(), what);
}

/**
 * Runs a test with a peer and a bus model, and shows that nothing of it is left: descriptors and mappings are counted
 * before and after. The first use of the libraries opens what stays (the loop's own descriptors).
 */
export async function withPeer(run: (bench: Bench) => Promise<void>, options: PeerOptions = {}): Promise<void> {
  const before = await settledCensus();
  const model = new PeerBus();
  const peer = new GuestPeer(model.handle, options);
  const buses: GuestBus[] = [];
  try {
    await run({
      peer,
      model,
      connect: async (more = {}) => {
        const bus = await connect({ path: peer.path, memoryBytes: 4 * 1024 * 1024, requestTimeoutMs: 2000, ...more });
        buses.push(bus);
        return bus;
      },
    });
  } finally {
    for (const bus of buses) bus.close();
    peer.close();
    model.closeRegions();
  }
  const same = () => JSON.stringify(census()) === before;
  await until(same, `nothing is left: ${before} ${JSON.stringify(census())}`);
}
