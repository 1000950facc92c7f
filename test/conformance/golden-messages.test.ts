import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dialectD5, headerFault } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, type MessageHeader, messageHeader, typeBus, typeResponse } from '../../src/virtio-msg/header.ts';
import { decode, encodedLength } from '../../src/wire/layout.ts';
import { messageOf, messageVectors, toHex } from '../support/golden.ts';

const vectors = messageVectors();
const keyOf = ({ kind, name }: { kind: string; name: string }): string => `${kind} ${name}`;
const readHeader = (frame: Uint8Array) => decode(messageHeader, frame, 0, headerBytes) as MessageHeader;

describe('golden vectors of the messages', () => {
  it('exist twice for every row of the dialect, and for nothing else', () => {
    const rows = [...dialectD5.rows()].map(keyOf);
    for (const row of rows) {
      const frames = new Set(vectors.filter((vector) => keyOf(vector) === row).map(({ bytes }) => toHex(bytes)));
      assert.ok(frames.size >= 2, `${row} has ${frames.size} different vectors`);
    }
    assert.deepEqual(new Set(vectors.map(keyOf)), new Set(rows));
  });

  it('name the place of their specification as the table does', () => {
    for (const row of dialectD5.rows()) {
      for (const vector of vectors.filter((each) => keyOf(each) === keyOf(row))) {
        assert.match(vector.source, new RegExp(`, ${row.name}$`));
        assert.equal(vector.source.split(',')[0], row.layout.source.split(',')[0], keyOf(row));
      }
    }
  });

  for (const row of dialectD5.rows()) {
    const own = vectors.filter((vector) => keyOf(vector) === keyOf(row));
    const where = row.type & typeBus ? 'bus' : 'transport';

    it(`${where} ${keyOf(row)} encodes to the recorded bytes`, () => {
      for (const vector of own) {
        const frame = new Uint8Array(vector.bytes.length + 16).fill(0xa5);
        const size = dialectD5.encode(messageOf(vector), vector.deviceNumber, vector.token, frame);
        assert.equal(toHex(frame.subarray(0, size)), toHex(vector.bytes));
        assert.equal(dialectD5.encodedLength(messageOf(vector)), size);
        assert.equal(encodedLength(row.layout, vector.body as never), size - headerBytes);
        assert.ok(
          frame.subarray(size).every((byte) => byte === 0xa5),
          'nothing is written behind the message',
        );
      }
    });

    it(`${where} ${keyOf(row)} decodes to the recorded body`, () => {
      for (const { bytes, body, deviceNumber, token } of own) {
        const header = readHeader(bytes);
        const type = row.kind === 'response' ? typeResponse : 0;
        const expected = { type: where === 'bus' ? type | typeBus : type, id: row.id, size: bytes.length };
        assert.deepEqual(header, { ...expected, deviceNumber, token });
        assert.equal(headerFault(header, bytes.length, 0xffff), undefined);
        assert.deepEqual(dialectD5.decode(bytes, header), { kind: row.kind, name: row.name, body });
      }
    });
  }

  it('cover the top bit of every number and empty variable parts', () => {
    const missing: string[] = [];
    for (const row of dialectD5.rows()) {
      const own = vectors.filter((vector) => keyOf(vector) === keyOf(row));
      for (const [key, field] of Object.entries(row.layout.fields as Record<string, { kind: string }>)) {
        const isCount = row.layout.tail?.count === key;
        const isReserved = key === 'reserved';
        if (isCount || isReserved || field.kind === 'bytes' || field.kind === 'u8') continue;
        const top = field.kind === 'u64' ? 1n << 63n : field.kind === 'u16' ? 1n << 15n : 1n << 31n;
        const seen = own.some(({ body }) => (BigInt(body[key] as number | bigint) & top) !== 0n);
        if (!seen) missing.push(`top bit of ${key} in ${keyOf(row)}`);
      }
      const { tail } = row.layout;
      const isSometimesEmpty = tail === undefined || own.some(({ body }) => body[tail.count] === 0);
      if (!isSometimesEmpty) missing.push(`empty ${tail.name} in ${keyOf(row)}`);
    }
    assert.deepEqual(missing, []);
  });
});
