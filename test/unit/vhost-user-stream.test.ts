import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { type Message, MessageReader } from '../../src/vhost-user/stream.ts';
import { fromHex, toHex } from '../support/golden.ts';
import { foreignFds, messageHex } from '../support/vhost-user-fakes.ts';

const options = { seed: 5, numRuns: 100 };

interface Sent {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  readonly fds: number;
}

const sentMessage = fc.record(
  {
    request: fc.integer({ min: 0, max: 50 }),
    flags: fc.constantFrom(1, 5, 9, 13),
    payload: fc.uint8Array({ maxLength: 60 }),
    fds: fc.integer({ min: 0, max: 3 }),
  },
  { noNullPrototype: true },
);

const bytesOf = (sent: Sent): Uint8Array => fromHex(messageHex(sent.request, sent.flags, toHex(sent.payload)));

function seen(message: Message): Sent {
  const flags = 1 | (message.reply ? 4 : 0) | (message.needReply ? 8 : 0);
  const fds = message.fds.length;
  for (const fd of message.fds) fd.close();
  return { request: message.request, flags, payload: message.payload, fds };
}

/** Cuts a message anywhere; its descriptors come with the first piece. */
function feed(reader: MessageReader, sent: Sent, cuts: readonly number[]): Message[] {
  const bytes = bytesOf(sent);
  const ends = [...new Set(cuts.map((cut) => cut % bytes.length))].filter((cut) => cut > 0).sort((a, b) => a - b);
  const got: Message[] = [];
  let start = 0;
  for (const end of [...ends, bytes.length]) {
    got.push(...reader.push(bytes.subarray(start, end), start === 0 ? foreignFds(sent.fds) : []));
    start = end;
  }
  return got;
}

test('messages arrive whole however they are cut, with their descriptors', () => {
  const before = census();
  const cuts = fc.array(fc.nat(200), { maxLength: 6 });
  fc.assert(
    fc.property(fc.array(sentMessage, { maxLength: 6 }), cuts, (messages, where) => {
      const reader = new MessageReader();
      const got = messages.flatMap((sent) => feed(reader, sent, where)).map(seen);
      assert.deepEqual(got, messages);
      assert.equal(reader.fault, undefined);
      assert.equal(reader.idle, true);
    }),
    options,
  );
  assert.deepEqual(census(), before);
});

test('any number of messages in one piece', () => {
  fc.assert(
    fc.property(fc.array(sentMessage, { minLength: 1, maxLength: 6 }), (messages) => {
      const reader = new MessageReader();
      const all = Buffer.concat(messages.map(bytesOf));
      // The descriptors of one piece belong to the first message that begins in it.
      const got = reader.push(all, foreignFds(2)).map(seen);
      assert.deepEqual(
        got,
        messages.map((sent, i) => ({ ...sent, fds: i === 0 ? 2 : 0 })),
      );
    }),
    options,
  );
});

test('a piece that ends one message and begins the next gives its descriptors to the next', () => {
  const reader = new MessageReader();
  const first = fromHex(messageHex(1, 1, 'aabbccdd'));
  const second = fromHex(messageHex(2, 1));
  assert.deepEqual(reader.push(first.subarray(0, 14), []), []);
  const got = reader.push(Buffer.concat([first.subarray(14), second]), foreignFds(1)).map(seen);
  assert.deepEqual(
    got.map((each) => [each.request, each.fds]),
    [
      [1, 0],
      [2, 1],
    ],
  );
});

test('a reader says how many bytes belong to what is at hand', () => {
  const reader = new MessageReader();
  assert.equal(reader.wantedBytes, 12);
  reader.push(fromHex('0100'));
  assert.equal(reader.wantedBytes, 10);
  assert.equal(reader.idle, false);
  reader.push(fromHex('00000100000008000000'));
  assert.equal(reader.wantedBytes, 8);
  reader.push(fromHex('0000'));
  assert.equal(reader.wantedBytes, 6);
});

const faults: ReadonlyArray<readonly [string, string, number, RegExp]> = [
  ['version 2', messageHex(1, 2), 0, /^a message of version 2$/],
  ['no version', messageHex(1, 4), 0, /^a message of version 0$/],
  ['unknown flags', messageHex(1, 0x11), 0, /^a message with the flags 0x11$/],
  ['the highest flag', messageHex(1, 0x8000_0001), 0, /^a message with the flags 0x80000001$/],
  ['a payload without end', `0100000001000000${'ff'.repeat(4)}`, 0, /^a message with 4294967295 bytes of payload$/],
  [
    'too many descriptors',
    messageHex(1, 1),
    limits.vhostUserFdsPerMessage + 1,
    /^a message with more than 8 descriptors$/,
  ],
];

for (const [name, hex, fds, reason] of faults) {
  test(`${name} is the last thing that is read`, () => {
    const before = census();
    const reader = new MessageReader();
    const good = fromHex(messageHex(7, 1, 'aa'));
    assert.equal(reader.push(good).length, 1);
    assert.deepEqual(reader.push(fromHex(hex), foreignFds(fds)), []);
    assert.match(reader.fault ?? '', reason);
    assert.deepEqual(reader.push(good, foreignFds(2)), []);
    assert.match(reader.fault ?? '', reason);
    assert.deepEqual(census(), before);
  });
}

test('descriptors in pieces add up, and are bounded', () => {
  const before = census();
  const reader = new MessageReader();
  reader.push(fromHex('01'), foreignFds(5));
  reader.push(fromHex('00'), foreignFds(4));
  assert.match(reader.fault ?? '', /more than 8 descriptors/);
  assert.deepEqual(census(), before);
});

test('descriptors that come with payload only are closed, and end the stream', () => {
  const before = census();
  const reader = new MessageReader();
  reader.push(fromHex(messageHex(1, 1, 'aabb')).subarray(0, 13));
  assert.deepEqual(reader.push(fromHex('bb'), foreignFds(1)).length, 1);
  assert.equal(reader.fault, 'descriptors that came without a header');
  assert.deepEqual(census(), before);
});

test('closing in the middle of a message closes its descriptors', () => {
  const before = census();
  const reader = new MessageReader();
  reader.push(fromHex(messageHex(1, 1, 'aabb')).subarray(0, 13), foreignFds(3));
  reader.close();
  assert.deepEqual(reader.push(fromHex('bb')), []);
  assert.deepEqual(census(), before);
});

test('random bytes never do harm', () => {
  const before = census();
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.uint8Array({ maxLength: 40 }), fc.nat(4)), { maxLength: 8 }), (pieces) => {
      const reader = new MessageReader();
      for (const [bytes, fds] of pieces) {
        for (const message of reader.push(bytes, foreignFds(fds))) for (const fd of message.fds) fd.close();
      }
      reader.close();
    }),
    options,
  );
  assert.deepEqual(census(), before);
});
