import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type LockRequest, ObjectLocks } from '../../src/bridge/service/locks.ts';
import { settle } from '../api/support.ts';

/** Operations that report when they run and end when told. */
class Track {
  readonly locks = new ObjectLocks();
  readonly running = new Set<string>();
  readonly #ends = new Map<string, () => void>();

  start(name: string, ...requests: readonly [key: string, mode: LockRequest['mode']][]): void {
    const operation = async () => {
      this.running.add(name);
      await new Promise<void>((resolve) => this.#ends.set(name, resolve));
      this.running.delete(name);
    };
    void this.locks.run(
      requests.map(([key, mode]) => ({ key, mode })),
      operation,
    );
  }

  async end(name: string): Promise<void> {
    this.#ends.get(name)?.();
    await settle();
  }

  async assertRunning(...names: string[]): Promise<void> {
    await settle();
    assert.deepEqual([...this.running].sort(), names);
  }
}

describe('service: locks', () => {
  it('are shared or exclusive, first come first served', async () => {
    const track = new Track();
    track.start('r1', ['bus', 'shared']);
    track.start('r2', ['bus', 'shared']);
    track.start('w1', ['bus', 'exclusive']);
    track.start('r3', ['bus', 'shared']);
    await track.assertRunning('r1', 'r2');
    await track.end('r1');
    await track.assertRunning('r2');
    await track.end('r2');
    await track.assertRunning('w1');
    track.start('w2', ['bus', 'exclusive']);
    await track.end('w1');
    await track.assertRunning('r3');
    await track.end('r3');
    await track.assertRunning('w2');
    await track.end('w2');
  });

  it('of one operation come in one order, so that nobody waits in a circle', async () => {
    const track = new Track();
    track.start('ab', ['a', 'exclusive'], ['b', 'exclusive']);
    track.start('ba', ['b', 'exclusive'], ['a', 'exclusive']);
    await track.assertRunning('ab');
    await track.end('ab');
    await track.assertRunning('ba');
    await track.end('ba');
    await track.assertRunning();
  });

  it('are given back by an operation that fails', async () => {
    const locks = new ObjectLocks();
    const request = [{ key: 'a', mode: 'exclusive' as const }];
    await assert.rejects(
      locks.run(request, () => Promise.reject(new Error('no'))),
      /no/,
    );
    assert.equal(await locks.run(request, async () => 'free'), 'free');
  });
});
