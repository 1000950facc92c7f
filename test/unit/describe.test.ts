import assert from 'node:assert/strict';
import { it, describe as suite } from 'node:test';
import { describe } from '../../src/virtio-msg/describe.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { fromHex, messageOf, messageVectors, type Vector } from '../support/golden.ts';

const vectors = messageVectors();
const isBus = (vector: Vector): boolean => (vector.bytes[0]! & 2) !== 0;
const line = (hex: string): string => describe(fromHex(hex), dialectD5);

/** xorshift32; the same sequence in every run. */
function prng(seed: number): (below: number) => number {
  let x = seed;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    x >>>= 0;
    return x % below;
  };
}

/** Bounds what one frame may add to a log. */
const longestLine = 600;

function checkLine(frame: Uint8Array): string {
  const before = Buffer.from(frame).toString('hex');
  const text = describe(frame, dialectD5);
  assert.equal(Buffer.from(frame).toString('hex'), before, 'the frame is only read');
  assert.ok(text.length > 0 && text.length <= longestLine, `${text.length} characters for ${before}`);
  assert.match(text, /^[\x20-\x7e…]+$/);
  return text;
}

suite('describe', () => {
  it('names message, kind, place, token and fields of every golden vector', () => {
    for (const vector of vectors) {
      const text = checkLine(vector.bytes);
      const where = isBus(vector) ? 'bus' : `dev ${vector.deviceNumber}`;
      const token = vector.kind === 'event' ? '' : ` token ${vector.token}`;
      const keys = Object.keys(vector.body).filter((key) => key !== 'reserved');
      const start = `${vector.name} ${vector.kind} ${where}${token}`;
      assert.equal(text.split(': ')[0], start);
      const shown = [...text.slice(start.length).matchAll(/[: ](\w+)=/g)].map(([, key]) => key);
      assert.deepEqual(shown, keys);
    }
  });

  it('shows numbers, addresses, bytes and words as a person reads them', () => {
    assert.equal(line('0002000002000800'), 'GET_DEVICE_INFO request dev 0 token 2');
    assert.equal(
      line('010503001100160001000000000000000200000000a5'),
      'GET_CONFIG response dev 3 token 17: generation=1 offset=0 length=2 data=00a5',
    );
    assert.equal(
      line('0105030013001400ffffffff0000000000000000'),
      'GET_CONFIG response dev 3 token 19: generation=4294967295 offset=0 length=0 data=-',
    );
    assert.equal(
      line('010301000300180000000000020000000000003003000000'),
      'GET_DEVICE_FEATURES response dev 1 token 3: blockIndex=0 blockCount=2 blocks=[0x30000000 0x00000003]',
    );
    assert.equal(
      line('010c090026002000ffffffff000000000000000000000080ffffffffffffffff'),
      'GET_SHM response dev 9 token 38: index=4294967295 length=0x8000000000000000 address=0xffffffffffffffff',
    );
    assert.equal(line('0240000000000c0003000200'), 'EVENT_DEVICE event bus: device=3 state=2');
    assert.equal(line('0388000005000c00eaffffff'), 'REGION_ADD response bus token 5: errno=-22');
  });

  it('shortens long bytes and long lists', () => {
    const data = new Uint8Array(40).fill(0xab);
    const config = {
      kind: 'response',
      name: 'GET_CONFIG',
      body: { generation: 0, offset: 0, length: 40, data },
    } as const;
    const frame = new Uint8Array(60);
    dialectD5.encode(config, 0, 0, frame);
    assert.ok(describe(frame, dialectD5).endsWith(`data=${'ab'.repeat(32)}… (40 bytes)`));

    const blocks = new Array<number>(9).fill(0x8000_0000);
    const features = {
      kind: 'request',
      name: 'SET_DRIVER_FEATURES',
      body: { blockIndex: 0, blockCount: 9, blocks },
    } as const;
    const large = new Uint8Array(52);
    dialectD5.encode(features, 0, 0, large);
    assert.ok(describe(large, dialectD5).endsWith(`${'0x80000000 '.repeat(8).trimEnd()}… (9 words)]`));
  });

  it('says what is wrong with a frame, and shows its bytes', () => {
    assert.equal(line(''), 'malformed: message header: 0 bytes, at least 8 needed; ');
    assert.equal(line('00020000020008'), 'malformed: message header: 7 bytes, at least 8 needed; 00020000020008');
    assert.equal(line('0002000002000700'), 'malformed: msg_size 7 is shorter than the header; 0002000002000700');
    assert.equal(line('0002000002000900'), 'malformed: msg_size 9 exceeds the slot of 8 bytes; 0002000002000900');
    assert.equal(line('0203010002000800'), 'malformed: bus message with device number 1; 0203010002000800');
    assert.equal(line('0142000000000800'), 'malformed: an event marked as a response; 0142000000000800');
    assert.equal(
      line('00ff040002000800'),
      'id 0xff message dev 4 token 2: malformed: unknown message id 0xff; 00ff040002000800',
    );
    assert.equal(
      line('010704000200090000'),
      'GET_DEVICE_STATUS response dev 4 token 2: malformed: ' +
        'GET_DEVICE_STATUS response: 1 bytes, at least 4 needed; 010704000200090000',
    );
  });

  it('takes a frame with the padding of its slot', () => {
    for (const vector of vectors) {
      const slot = new Uint8Array(vector.bytes.length + 24);
      slot.set(vector.bytes);
      assert.equal(describe(slot, dialectD5), describe(vector.bytes, dialectD5));
    }
  });

  it('never throws, whatever the bytes', () => {
    const below = prng(0x5eed_1e55);
    for (let i = 0; i < 100_000; i++) {
      const frame = new Uint8Array(below(80));
      for (let at = 0; at < frame.length; at++) frame[at] = below(256);
      // Most random sizes are wrong; half of the frames get past that check.
      if (frame.length >= 8 && i % 2 === 0) {
        frame[6] = frame.length;
        frame[7] = 0;
      }
      checkLine(frame);
    }
    for (let i = 0; i < 100_000; i++) {
      const frame = vectors[below(vectors.length)]!.bytes.slice();
      for (let edits = 1 + below(4); edits > 0; edits--) frame[below(frame.length)] = below(256);
      checkLine(frame.subarray(0, frame.length - (i % 3 === 0 ? below(frame.length) : 0)));
    }
  });

  it('stays short for the largest frames', () => {
    const frame = new Uint8Array(0xffff).fill(0xff);
    frame.set([0, 4, 0, 0, 1, 0, 0xfc, 0xff, 0, 0, 0, 0, 0xfb, 0x3f, 0, 0]);
    assert.match(checkLine(frame), /^SET_DRIVER_FEATURES request dev 0 token 1: .*… \(16379 words\)\]$/);
    for (const vector of vectors) checkLine(dialectFrame(vector));
  });
});

function dialectFrame(vector: Vector): Uint8Array {
  const frame = new Uint8Array(0x1_0000);
  dialectD5.encode(messageOf(vector), vector.deviceNumber, vector.token, frame);
  return frame;
}
