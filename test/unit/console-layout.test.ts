import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  consoleConfig,
  consoleControl,
  consoleQueueCount,
  consoleQueueRole,
  consoleReceiveQueue,
  consoleResize,
} from '../../src/virtio/console.ts';
import { decode, encode, type Layout } from '../../src/wire/layout.ts';
import { consoleVectors, toHex } from '../support/golden.ts';

const layouts: readonly Layout[] = [consoleConfig, consoleControl, consoleResize] as never;

describe('console layouts', () => {
  for (const layout of layouts) {
    const own = consoleVectors().filter(({ name }) => name === layout.name);

    test(`${layout.name} encodes to and decodes from the recorded bytes`, () => {
      assert.ok(own.length >= 2);
      for (const { bytes, body } of own) {
        const target = new Uint8Array(bytes.length).fill(0xa5);
        assert.equal(encode(layout, body as never, target), bytes.length);
        assert.equal(toHex(target), toHex(bytes));
        assert.deepEqual(decode(layout, bytes, 0, bytes.length), body);
      }
    });
  }

  test('there are vectors of nothing else', () => {
    assert.deepEqual(new Set(consoleVectors().map(({ name }) => name)), new Set(layouts.map(({ name }) => name)));
  });
});

describe('console queues (virtio 1.3, 5.3.2)', () => {
  test('port 0 has 0 and 1, control has 2 and 3, port n has 2n + 2 and 2n + 3', () => {
    const roles = Array.from({ length: 8 }, (_, queue) => consoleQueueRole(queue));
    assert.deepEqual(
      roles.map(({ port, receive }) => `${port ?? 'control'} ${receive ? 'in' : 'out'}`),
      ['0 in', '0 out', 'control in', 'control out', '1 in', '1 out', '2 in', '2 out'],
    );
  });

  test('the receive queue of a port is the one with its role', () => {
    for (let port = 0; port < 31; port++) {
      assert.deepEqual(consoleQueueRole(consoleReceiveQueue(port)), { port, receive: true });
      assert.deepEqual(consoleQueueRole(consoleReceiveQueue(port) + 1), { port, receive: false });
    }
    assert.deepEqual([consoleQueueCount(1), consoleQueueCount(31)], [4, 64]);
  });
});
