import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseU32, parseU64, readFrontend } from '../../src/bridge/bus/xen/frontend.ts';
import { decide, type Phase } from '../../src/bridge/bus/xen/offer.ts';
import { Pace } from '../../src/kit/pace.ts';
import { FakeClock } from '../support/bridge-fakes.ts';

const terms = { dialect: 5, maxMessageSizeBytes: 264 };
const good: Record<string, string | undefined> = {
  version: '1',
  dialect: '5',
  'max-message-size': '4096',
  'ring-to-service-refs': '8 9 4294967295',
  'ring-to-guest-refs': '11',
  'event-channel': '4294967295',
};

describe('xen frontend nodes', () => {
  test('an answer is read, each node once', () => {
    const read: string[] = [];
    const nodes: typeof good = {
      ...good,
      'feature-persistent': '1',
      'feature-sleep-words': '0',
      'resume-epoch': '18446744073709551615',
    };
    nodes['resume-token'] = '000102030405060708090a0b0c0d0e0F';
    const answer = readFrontend((node) => {
      read.push(node);
      return nodes[node];
    }, terms);
    assert.deepEqual(answer, {
      maxMessageSize: 264,
      toService: Uint32Array.of(8, 9, 0xffff_ffff),
      toGuest: Uint32Array.of(11),
      port: 0xffff_ffff,
      sleepWords: false,
      queueChannels: false,
      persistent: true,
      claim: { epoch: 0xffff_ffff_ffff_ffffn, token: Uint8Array.from({ length: 16 }, (_, i) => i) },
    });
    assert.equal(new Set(read).size, read.length);
  });

  test('without resume-epoch it is a fresh start, whatever the token', () => {
    const nodes: typeof good = { ...good, 'resume-token': 'junk' };
    const answer = readFrontend((node) => nodes[node], terms);
    assert.ok(typeof answer !== 'string');
    assert.deepEqual(answer.claim, { epoch: 0n, token: new Uint8Array(16) });
  });

  test('numbers are plain decimals that fit', () => {
    for (const text of ['0', '1', '4294967295']) assert.equal(parseU32(text), Number(text));
    for (const text of [undefined, '', ' 1', '1 ', '01', '+1', '-1', '1e3', '0x1', '１', '1\n', '4294967296']) {
      assert.equal(parseU32(text), undefined, JSON.stringify(text));
    }
    assert.equal(parseU64('18446744073709551615'), (1n << 64n) - 1n);
    assert.equal(parseU64('18446744073709551616'), undefined);
    assert.equal(parseU64('9'.repeat(2000)), undefined);
  });
});

describe('xen offers: what a look at the guest leads to', () => {
  const next = (
    phase: Phase,
    state: number | undefined,
    epoch?: bigint,
    acknowledged = true,
    exists = true,
  ): string => {
    const decision = decide(phase, { exists, state, epoch }, 5n, acknowledged);
    return decision.do === 'end' ? `end ${decision.next}` : decision.do;
  };
  const states = [undefined, 0, 1, 2, 3, 4, 5, 6, 7];
  const all = (phase: Phase, acknowledged = true): string[] =>
    states.map((state) => next(phase, state, undefined, acknowledged));

  test('offered: only an answer to this very offer', () => {
    assert.deepEqual(new Set(all('offered')), new Set(['nothing']));
    assert.deepEqual(
      [next('offered', 3, 5n), next('offered', 3, 4n), next('offered', 4, 5n)],
      ['accept', 'nothing', 'nothing'],
    );
  });

  test('connected', () => {
    const [none, due, closed] = ['nothing', 'end due', 'end closed'];
    assert.deepEqual(all('connected'), [none, none, due, none, due, none, closed, due, none]);
    assert.deepEqual(all('connected', false), [none, none, due, none, none, 'acknowledge', closed, due, none]);
  });

  test('closed: until the guest asks; due: at once', () => {
    const none = 'nothing';
    assert.deepEqual(all('closed'), [none, none, 'offer', none, none, none, none, 'offer', none]);
    assert.deepEqual(new Set(all('due')), new Set(['offer']));
  });

  test('a directory that is gone', () => {
    for (const phase of ['offered', 'connected', 'closed', 'due'] as const) {
      assert.equal(next(phase, undefined, undefined, true, false), 'end absent');
    }
    assert.equal(next('gone', 3, 5n), 'nothing');
    assert.equal(next('absent', 3, 5n), 'nothing');
  });
});

test('pace: a few at once, then one in each interval, and never more than a few saved up', () => {
  const clock = new FakeClock();
  const pace = new Pace(clock, 3, 100);
  const taken = (): number => {
    let count = 0;
    while (pace.take() === 0) count += 1;
    return count;
  };
  assert.equal(taken(), 3);
  assert.equal(pace.take(), 100);
  clock.advance(40);
  assert.equal(pace.take(), 60);
  clock.advance(60);
  assert.equal(taken(), 1);
  clock.advance(250);
  assert.equal(taken(), 2);
  clock.advance(1_000_000);
  assert.equal(pace.take(2), 0);
  assert.equal(pace.take(3), 150);
  clock.advance(150);
  assert.equal(pace.take(3), 0);
});
