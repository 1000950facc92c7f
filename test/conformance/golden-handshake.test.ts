import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { handshakeMagic, packetHead, packetType } from '../../src/virtio-msg/loopback-handshake.ts';
import { decode, encode, encodedLength, type Layout } from '../../src/wire/layout.ts';
import { packetLayouts, packetVectors, toHex } from '../support/golden.ts';

const vectors = packetVectors();
const names = Object.keys(packetType) as (keyof typeof packetType)[];

describe('golden vectors of the loopback handshake', () => {
  it('exist twice for every packet, and for nothing else', () => {
    for (const name of names) {
      const own = vectors.filter((vector) => vector.name === name.toUpperCase());
      assert.ok(new Set(own.map(({ bytes }) => toHex(bytes))).size >= 2, `${name} has ${own.length} vectors`);
    }
    assert.deepEqual(new Set(vectors.map(({ name }) => name.toLowerCase())), new Set(names));
  });

  for (const name of names) {
    const layout: Layout = packetLayouts[name];
    const own = vectors.filter((vector) => vector.name === name.toUpperCase());

    it(`${layout.name} encodes to the recorded bytes`, () => {
      assert.equal(layout.name, name.toUpperCase());
      for (const { bytes, body } of own) {
        const packet = new Uint8Array(bytes.length).fill(0xa5);
        assert.equal(encode(layout, body as never, packet), bytes.length);
        assert.equal(toHex(packet), toHex(bytes));
        assert.equal(encodedLength(layout, body as never), bytes.length);
      }
    });

    it(`${layout.name} decodes to the recorded body`, () => {
      for (const { bytes, body } of own) assert.deepEqual(decode(layout, bytes, 0, bytes.length), body);
    });

    it(`${layout.name} begins with the common head`, () => {
      for (const { bytes, body } of own) {
        const head = decode(packetHead, bytes, 0, bytes.length, 'ignore');
        assert.deepEqual(head, { magic: handshakeMagic, version: body.version, type: packetType[name] });
        assert.equal(Buffer.from(bytes.subarray(0, 4)).toString('latin1'), 'VMSG');
      }
    });
  }
});
