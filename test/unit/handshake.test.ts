import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  handshakeFeatures,
  handshakeMagic,
  handshakeVersion,
  headOf,
  packetHead,
  packetType,
  refused,
  welcomeResumed,
} from '../../src/virtio-msg/loopback-handshake.ts';
import { decode, encode, type Layout, Malformed } from '../../src/wire/layout.ts';
import { fromHex, packetLayouts, packetVectors } from '../support/golden.ts';

const vectors = packetVectors();
const names = Object.keys(packetType) as (keyof typeof packetType)[];

describe('loopback handshake packets', () => {
  it('have the numbers of the protocol', () => {
    assert.deepEqual(packetType, { hello: 1, welcome: 2, rings: 3, ready: 4, refused: 5, descriptors: 6 });
    assert.deepEqual(handshakeFeatures, { sleepWords: 1, queueNotify: 2 });
    assert.equal(welcomeResumed, 1);
    assert.equal(handshakeVersion, 1);
    assert.equal(handshakeMagic, new DataView(fromHex('564d5347').buffer).getUint32(0, true));
  });

  for (const name of names) {
    const layout: Layout = packetLayouts[name];

    it(`${layout.name} is malformed at any other length`, () => {
      for (const { bytes } of vectors.filter((vector) => vector.name === layout.name)) {
        for (let length = 0; length < bytes.length; length++) {
          assert.ok(decode(layout, bytes, 0, length) instanceof Malformed, `${length} of ${bytes.length} bytes`);
        }
        const longer = new Uint8Array(bytes.length + 1);
        longer.set(bytes);
        assert.ok(decode(layout, longer, 0, longer.length) instanceof Malformed);
      }
    });

    it(`${layout.name} can be told by its head before the rest is read`, () => {
      for (const { bytes } of vectors.filter((vector) => vector.name === layout.name)) {
        for (let length = 0; length < packetHead.size; length++) {
          assert.ok(decode(packetHead, bytes, 0, length, 'ignore') instanceof Malformed);
        }
        const head = decode(packetHead, bytes, 0, bytes.length, 'ignore');
        assert.ok(!(head instanceof Malformed));
        assert.equal(head.type, packetType[name]);
      }
    });
  }

  it('are sent with the head of this version', () => {
    const packet = new Uint8Array(8);
    encode(packetHead, headOf(packetType.ready), packet);
    assert.equal(Buffer.from(packet).toString('hex'), '564d534701000400');
  });

  it('do not let a reason claim more bytes than came', () => {
    const packet = new Uint8Array(20);
    const body = { ...headOf(packetType.refused), errno: 16, reasonLength: 4, reason: new Uint8Array(4) };
    encode(refused, body, packet);
    for (const claimed of [0, 3, 5, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
      new DataView(packet.buffer).setUint32(12, claimed, true);
      assert.ok(decode(refused, packet, 0, packet.length) instanceof Malformed, `${claimed} bytes claimed`);
    }
  });
});
