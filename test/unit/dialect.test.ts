import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { type CanonicalMessage, Dialect, dialectD5, headerFault } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, idEvent, type MessageHeader, typeBus, typeResponse } from '../../src/virtio-msg/header.ts';
import type { AnyLayout } from '../../src/virtio-msg/tables.ts';
import { writeU16 } from '../../src/wire/bytes.ts';
import { type Field, Malformed } from '../../src/wire/layout.ts';
import { type Body, type BodyValue, messageOf, messageVectors, type Vector } from '../support/golden.ts';

const rows = [...dialectD5.rows()];
const vectors = messageVectors();
const ownVectors = (row: (typeof rows)[number]): Vector[] =>
  vectors.filter(({ kind, name }) => kind === row.kind && name === row.name);
const titleOf = (row: (typeof rows)[number]): string =>
  `${row.type & typeBus ? 'bus' : 'transport'} ${row.kind} ${row.name}`;
const headerOf = (type: number, id: number, size: number): MessageHeader => ({
  type,
  id,
  deviceNumber: 0,
  token: 1,
  size,
});
const isMalformed = (result: unknown): boolean => result instanceof Malformed;

describe('dialect.decode', () => {
  for (const row of rows) {
    it(`takes ${titleOf(row)} with its exact size only`, () => {
      for (const { bytes, kind, name, body } of ownVectors(row)) {
        for (let size = headerBytes; size < bytes.length; size++) {
          const result = dialectD5.decode(bytes.slice(0, size), headerOf(row.type, row.id, size));
          assert.ok(isMalformed(result), `${size} of ${bytes.length} bytes`);
        }
        for (const surplus of [1, 4, 64]) {
          const longer = new Uint8Array(bytes.length + surplus);
          longer.set(bytes);
          assert.ok(
            isMalformed(dialectD5.decode(longer, headerOf(row.type, row.id, longer.length))),
            `${surplus} more`,
          );
          // Padding of a slot is not part of the message.
          const padded = dialectD5.decode(longer, headerOf(row.type, row.id, bytes.length));
          assert.deepEqual(padded, { kind, name, body });
        }
      }
    });
  }

  it('knows no id but those of its tables', () => {
    const known = new Set(rows.map(({ type, id }) => `${type} ${id}`));
    assert.equal(known.size, rows.length);
    const frame = new Uint8Array(72);
    for (let type = 0; type < 4; type++) {
      for (let id = 0; id < 256; id++) {
        if (known.has(`${type} ${id}`)) continue;
        const result = dialectD5.decode(frame, headerOf(type, id, 72));
        assert.ok(result instanceof Malformed);
        assert.equal(result.reason, `unknown message id 0x${id.toString(16)}`);
        assert.equal(dialectD5.nameOf(type, id), undefined);
      }
    }
  });

  it('keeps transport and bus messages of one id apart', () => {
    for (const row of rows) {
      assert.equal(dialectD5.nameOf(row.type, row.id), row.name);
      for (const { bytes } of ownVectors(row)) {
        const other = dialectD5.decode(bytes, headerOf(row.type ^ typeBus, row.id, bytes.length));
        if (!(other instanceof Malformed)) assert.notEqual(other.name, row.name);
      }
    }
    const getDevices = dialectD5.decode(Uint8Array.of(2, 2, 0, 0, 1, 0, 12, 0, 0, 0, 8, 0), headerOf(typeBus, 2, 12));
    assert.deepEqual(getDevices, { kind: 'request', name: 'GET_DEVICES', body: { offset: 0, count: 8 } });
    const info = dialectD5.decode(Uint8Array.of(0, 2, 0, 0, 1, 0, 8, 0), headerOf(0, 2, 8));
    assert.deepEqual(info, { kind: 'request', name: 'GET_DEVICE_INFO', body: {} });
  });

  it('has no event that is a response, and marks events by bit 6 of the id', () => {
    for (const row of rows) {
      assert.equal(row.kind === 'event', (row.id & idEvent) !== 0, row.name);
      if (row.kind !== 'event') continue;
      for (const { bytes } of ownVectors(row)) {
        const header = headerOf(row.type | typeResponse, row.id, bytes.length);
        assert.ok(isMalformed(dialectD5.decode(bytes, header)));
        assert.equal(headerFault(header, bytes.length, 0xffff), 'an event marked as a response');
      }
    }
  });

  it('ignores type bits 2 to 7', () => {
    for (const row of rows) {
      for (const { bytes, kind, name, body } of ownVectors(row)) {
        const header = headerOf(row.type | 0xfc, row.id, bytes.length);
        assert.equal(headerFault(header, bytes.length, 0xffff), undefined);
        assert.deepEqual(dialectD5.decode(bytes, header), { kind, name, body });
      }
    }
  });

  it('never throws on random payloads', () => {
    const payload = fc.uint8Array({ minLength: headerBytes, maxLength: 96 });
    fc.assert(
      fc.property(fc.constantFrom(...rows), payload, (row, frame) => {
        const result = dialectD5.decode(frame, headerOf(row.type, row.id, frame.length));
        if (result instanceof Malformed) return;
        // What is taken is a message: it encodes to a frame that decodes to the same.
        const again = new Uint8Array(dialectD5.encodedLength(result));
        assert.equal(dialectD5.encode(result, 0, 1, again), frame.length);
        assert.deepEqual(dialectD5.decode(again, headerOf(row.type, row.id, again.length)), result);
      }),
      { seed: 0xd5, numRuns: 20_000 },
    );
  });
});

const maxOf: Readonly<Record<string, number>> = { u8: 0xff, u16: 0xffff, u32: 0xffff_ffff };

function arbitraryField(field: Field): fc.Arbitrary<BodyValue> {
  switch (field.kind) {
    case 'u64':
      return fc.oneof(fc.bigInt(0n, (1n << 64n) - 1n), fc.constantFrom(0n, 1n << 63n, (1n << 64n) - 1n));
    case 'i32':
      return fc.oneof(fc.integer(), fc.constantFrom(0, -1, -0x8000_0000, 0x7fff_ffff));
    case 'bytes':
      return fc.uint8Array({ minLength: field.size, maxLength: field.size });
    default: {
      const max = maxOf[field.kind]!;
      return fc.oneof(fc.integer({ min: 0, max }), fc.constantFrom(0, max, (max >>> 1) + 1));
    }
  }
}

/** Random bodies of a layout, the tail as long as its count says. */
function arbitraryBody(l: AnyLayout): fc.Arbitrary<Body> {
  const fields = Object.entries(l.fields as Record<string, Field>);
  const { tail } = l;
  const fixed = fc.record(
    Object.fromEntries(
      fields.map(([key, field]) => [key, key === tail?.count ? fc.nat(70) : arbitraryField(field)]),
    ) as Record<string, fc.Arbitrary<BodyValue>>,
    { noNullPrototype: true },
  );
  if (tail === undefined) return fixed;
  return fixed.chain((body) => {
    const length = tail.byteLength(body[tail.count] as number) / (tail.kind === 'u32s' ? 4 : 1);
    const exact = { minLength: length, maxLength: length };
    const value: fc.Arbitrary<BodyValue> =
      tail.kind === 'u32s' ? fc.array(fc.integer({ min: 0, max: 0xffff_ffff }), exact) : fc.uint8Array(exact);
    return value.map((content): Body => ({ ...body, [tail.name]: content }));
  });
}

describe('dialect.encode', () => {
  for (const row of rows) {
    it(`is undone by decode for ${titleOf(row)}`, () => {
      const number = fc.integer({ min: 0, max: 0xffff });
      fc.assert(
        fc.property(arbitraryBody(row.layout), number, number, (body, deviceNumber, token) => {
          const message = { kind: row.kind, name: row.name, body } as never;
          const frame = new Uint8Array(dialectD5.encodedLength(message)).fill(0xa5);
          const size = dialectD5.encode(message, deviceNumber, token, frame);
          assert.equal(size, frame.length);
          const view = new DataView(frame.buffer);
          assert.equal(frame[0], row.type);
          assert.equal(frame[1], row.id);
          assert.equal(view.getUint16(2, true), row.type & typeBus ? 0 : deviceNumber);
          assert.equal(view.getUint16(4, true), token);
          assert.equal(view.getUint16(6, true), size);
          assert.deepEqual(dialectD5.decode(frame, headerOf(row.type, row.id, size)), message);
        }),
        { seed: row.id, numRuns: 300 },
      );
    });
  }

  it('writes device number 0 into bus messages', () => {
    const frame = new Uint8Array(12).fill(0xff);
    dialectD5.encode({ kind: 'request', name: 'PING', body: { data: 0 } }, 0xbeef, 7, frame);
    assert.deepEqual([...frame.subarray(0, 8)], [2, 3, 0, 0, 7, 0, 12, 0]);
  });

  it('refuses a message that the dialect lacks', () => {
    const unknown = { kind: 'event', name: 'PING', body: { data: 0 } } as unknown as CanonicalMessage;
    assert.throws(() => dialectD5.encode(unknown, 0, 0, new Uint8Array(64)), /D5 has no event PING/);
    assert.throws(() => dialectD5.encodedLength(unknown), /D5 has no event PING/);
  });

  it('does not write beyond a frame that is too short', () => {
    const memory = new Uint8Array(64).fill(0xa5);
    const [vector] = vectors.filter(({ name, kind }) => name === 'SET_VQUEUE' && kind === 'request');
    assert.throws(() => dialectD5.encode(messageOf(vector!), 0, 0, memory.subarray(0, 47)), /fits into/);
    assert.ok(memory.subarray(47).every((byte) => byte === 0xa5));
  });
});

describe('another dialect', () => {
  const fixedSize = new Dialect({ ...dialectD5.spec, name: 'fixed', quirks: new Set(['fixed-size-messages']) });

  it('takes payloads longer than their message where the sender has one fixed size', () => {
    for (const row of rows) {
      for (const { bytes, kind, name, body } of ownVectors(row)) {
        const frame = new Uint8Array(bytes.length + 9).fill(0xee);
        frame.set(bytes);
        assert.deepEqual(fixedSize.decode(frame, headerOf(row.type, row.id, frame.length)), { kind, name, body });
        if (bytes.length === headerBytes) continue;
        const short = headerOf(row.type, row.id, bytes.length - 1);
        assert.ok(isMalformed(fixedSize.decode(frame, short)));
      }
    }
  });

  it('converts bodies both ways', () => {
    const swapped = new Dialect({
      ...dialectD5.spec,
      name: 'swapped',
      toCanonical: (message) =>
        message.name === 'PING' && message.body.data === 0 ? new Malformed('an empty ping') : message,
      fromCanonical: (message) =>
        message.name === 'PING' ? { ...message, body: { data: ~message.body.data >>> 0 } } : message,
    });
    const frame = new Uint8Array(12);
    swapped.encode({ kind: 'request', name: 'PING', body: { data: 0xffff_ffff } }, 0, 1, frame);
    assert.deepEqual([...frame.subarray(8)], [0, 0, 0, 0]);
    const result = swapped.decode(frame, headerOf(typeBus, 3, 12));
    assert.ok(result instanceof Malformed);
    assert.equal(result.reason, 'an empty ping');
  });
});

describe('headerFault', () => {
  const header = (change: Partial<MessageHeader>): MessageHeader => ({
    type: 0,
    id: 2,
    deviceNumber: 0,
    token: 0,
    size: 8,
    ...change,
  });

  it('accepts what may be a message', () => {
    assert.equal(headerFault(header({}), 8, 52), undefined);
    assert.equal(headerFault(header({ size: 52 }), 64, 52), undefined);
    assert.equal(headerFault(header({ size: 64 }), 64, 264), undefined);
    assert.equal(headerFault(header({ size: 0xffff }), 0xffff, 0xffff), undefined);
    assert.equal(headerFault(header({ type: 1, deviceNumber: 0xffff }), 64, 264), undefined);
    assert.equal(headerFault(header({ id: 0xff }), 64, 264), undefined);
  });

  it('refuses sizes below the header, above the maximum and above the slot', () => {
    for (let size = 0; size < 8; size++) {
      assert.equal(headerFault(header({ size }), 64, 264), `msg_size ${size} is shorter than the header`);
    }
    assert.equal(headerFault(header({ size: 53 }), 64, 52), 'msg_size 53 exceeds the maximum 52');
    assert.equal(headerFault(header({ size: 65 }), 64, 264), 'msg_size 65 exceeds the slot of 64 bytes');
    assert.equal(headerFault(header({ size: 0xffff }), 264, 264), 'msg_size 65535 exceeds the maximum 264');
  });

  it('refuses a device number in a bus message', () => {
    for (const type of [2, 3, 0xfe]) {
      assert.equal(headerFault(header({ type, deviceNumber: 1 }), 64, 264), 'bus message with device number 1');
      assert.equal(headerFault(header({ type }), 64, 264), undefined);
    }
  });

  it('refuses every event with the response bit', () => {
    for (let id = 0; id < 256; id++) {
      for (const type of [1, 3]) {
        const fault = headerFault(header({ type, id }), 64, 264);
        assert.equal(fault, id & 0x40 ? 'an event marked as a response' : undefined);
      }
    }
  });

  it('stays within the frame for every vector cut short, so that nothing behind it is read', () => {
    for (const { bytes } of vectors) {
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      const size = view.getUint16(6, true);
      for (let available = headerBytes; available < bytes.length; available++) {
        assert.ok(headerFault(header({ size }), available, 0xffff)?.includes('exceeds the slot'));
      }
      const cut = bytes.slice();
      writeU16(cut, 6, 7);
      assert.ok(headerFault(header({ size: 7 }), cut.length, 0xffff)?.includes('shorter than the header'));
    }
  });
});
