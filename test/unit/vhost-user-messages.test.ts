import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  featuresFromU64,
  featuresToU64,
  protocolFeature,
  protocolFeatureNames,
} from '../../src/vhost-user/features.ts';
import {
  backEndRequests,
  decodedRequests,
  decodePayload,
  encodeMessage,
  frontEndRequests,
  type MessageSpec,
  namedBackEndRequests,
  namedRequests,
  requestName,
} from '../../src/vhost-user/messages.ts';
import { FLAG_NEED_REPLY, FLAG_REPLY, xenMapFlags } from '../../src/vhost-user/payloads.ts';
import { decodeRegions, type RegionDescription, singleOf, tableOf } from '../../src/vhost-user/regions.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import { fromHex, toHex } from '../support/golden.ts';

const region: RegionDescription = {
  guestAddress: 0x1_0000_0000n,
  size: 0x20_0000n,
  userAddress: 0x7f12_3456_7000n,
  mmapOffset: 0x3000n,
};
const regionHex = '0000000001000000' + '0000200000000000' + '0070563412' + '7f0000' + '0030000000000000';
const xenRegion = {
  ...region,
  mmapOffset: 0n,
  xen: { flags: xenMapFlags.GRANT | xenMapFlags.NO_ADVANCE_MAP, domid: 5 },
};
const xenRegionHex = `${regionHex.slice(0, 48)}${'00'.repeat(8)}0a00000005000000`;
const config = { offset: 2, size: 3, flags: 1, content: fromHex('aabbcc') };
const configHex = '02000000' + '03000000' + '01000000' + 'aabbcc';
const inflight = { mmapSize: 0x1000n, mmapOffset: 0x40n, queues: 2, queueSize: 256, padding: 0 };
const inflightHex = '0010000000000000' + '4000000000000000' + '0200' + '0001' + '00000000';
const log = { size: 0x1000n, offset: 0x2000n };
const address = { index: 1, flags: 0, descriptor: 0x1000n, used: 0x3000n, available: 0x2000n, log: 0n };
const addressHex =
  '01000000' + '00000000' + '0010000000000000' + '0030000000000000' + '0020000000000000' + '0000000000000000';
const state = { index: 3, num: 0x101 };
const stateHex = '03000000' + '01010000';
const value = { value: 0x1_4000_0000n };
const valueHex = '0000004001000000';

/** Name, request number, body and payload in hex. The bytes were written down by hand from the specification. */
const requestVectors: ReadonlyArray<readonly [string, number, object, string]> = [
  ['GET_FEATURES', 1, {}, ''],
  ['SET_FEATURES', 2, value, valueHex],
  ['SET_OWNER', 3, {}, ''],
  ['SET_MEM_TABLE', 5, tableOf([region, region], false), `0200000000000000${regionHex}${regionHex}`],
  ['SET_LOG_BASE', 6, log, '0010000000000000' + '0020000000000000'],
  ['SET_LOG_FD', 7, {}, ''],
  ['SET_VRING_NUM', 8, state, stateHex],
  ['SET_VRING_ADDR', 9, address, addressHex],
  ['SET_VRING_BASE', 10, state, stateHex],
  ['GET_VRING_BASE', 11, state, stateHex],
  ['SET_VRING_KICK', 12, value, valueHex],
  ['SET_VRING_CALL', 13, value, valueHex],
  ['SET_VRING_ERR', 14, value, valueHex],
  ['GET_PROTOCOL_FEATURES', 15, {}, ''],
  ['SET_PROTOCOL_FEATURES', 16, value, valueHex],
  ['GET_QUEUE_NUM', 17, {}, ''],
  ['SET_VRING_ENABLE', 18, state, stateHex],
  ['SET_BACKEND_REQ_FD', 21, {}, ''],
  ['GET_CONFIG', 24, config, configHex],
  ['SET_CONFIG', 25, config, configHex],
  ['GET_INFLIGHT_FD', 31, inflight, inflightHex],
  ['SET_INFLIGHT_FD', 32, inflight, inflightHex],
  ['RESET_DEVICE', 34, {}, ''],
  ['GET_MAX_MEM_SLOTS', 36, {}, ''],
  ['ADD_MEM_REG', 37, singleOf(region, false), `0000000000000000${regionHex}`],
  ['REM_MEM_REG', 38, singleOf(region, false), `0000000000000000${regionHex}`],
  ['SET_STATUS', 39, value, valueHex],
  ['GET_STATUS', 40, {}, ''],
];

const replyVectors: ReadonlyArray<readonly [keyof typeof frontEndRequests, object, string]> = [
  ['GET_FEATURES', value, valueHex],
  ['GET_PROTOCOL_FEATURES', value, valueHex],
  ['GET_QUEUE_NUM', value, valueHex],
  ['GET_MAX_MEM_SLOTS', value, valueHex],
  ['GET_STATUS', value, valueHex],
  ['GET_VRING_BASE', state, stateHex],
  ['GET_CONFIG', config, configHex],
  ['GET_INFLIGHT_FD', inflight, inflightHex],
];

const allSpecs: Readonly<Record<string, MessageSpec>> = { ...frontEndRequests, ...decodedRequests };

function headerHex(id: number, flags: number, payload: string): string {
  const u32 = (number: number): string => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(number);
    return bytes.toString('hex');
  };
  return u32(id) + u32(flags) + u32(payload.length / 2);
}

describe('golden messages', () => {
  for (const [name, id, body, hex] of requestVectors) {
    test(name, () => {
      const spec = allSpecs[name]!;
      assert.equal(spec.id, id);
      const bytes = encodeMessage(id, FLAG_NEED_REPLY, spec.payload, body as never);
      assert.equal(toHex(bytes), headerHex(id, 9, hex) + hex);
      assert.deepEqual(decodePayload(spec.payload, bytes.subarray(12)), body);
    });
  }

  for (const [name, body, hex] of replyVectors) {
    test(`answer to ${name}`, () => {
      const { id, reply } = frontEndRequests[name] as MessageSpec;
      const bytes = encodeMessage(id, FLAG_REPLY, reply!, body as never);
      assert.equal(toHex(bytes), headerHex(id, 5, hex) + hex);
      assert.deepEqual(decodePayload(reply!, bytes.subarray(12)), body);
    });
  }

  test('requests of the back-end', () => {
    const vectors = [
      ['CONFIG_CHANGE_MSG', {}, ''],
      ['VRING_CALL', state, stateHex],
      ['VRING_ERR', state, stateHex],
    ] as const;
    for (const [index, [name, body, hex]] of vectors.entries()) {
      const spec: MessageSpec = backEndRequests[name];
      const id = [2, 4, 5][index]!;
      assert.equal(toHex(encodeMessage(spec.id, 0, spec.payload, body as never)), headerHex(id, 1, hex) + hex);
    }
  });
});

test('every vector has its request and every request its vector', () => {
  assert.deepEqual(new Set(requestVectors.map(([name]) => name)), new Set(Object.keys(allSpecs)));
  const asking = Object.entries(frontEndRequests).filter(([, spec]) => spec.reply !== undefined);
  assert.deepEqual(new Set<string>(replyVectors.map(([name]) => name)), new Set(asking.map(([name]) => name)));
});

test('regions of Xen are longer, in tables and alone', () => {
  const { SET_MEM_TABLE, ADD_MEM_REG } = frontEndRequests;
  const table = encodeMessage(5, 0, SET_MEM_TABLE.xenPayload, tableOf([xenRegion], true) as never);
  assert.equal(toHex(table), `${headerHex(5, 1, '00'.repeat(48))}0100000000000000${xenRegionHex}`);
  const single = encodeMessage(37, 0, ADD_MEM_REG.xenPayload, singleOf(xenRegion, true) as never);
  assert.equal(toHex(single), `${headerHex(37, 1, '00'.repeat(48))}0000000000000000${xenRegionHex}`);
});

test('regions are read back', () => {
  assert.deepEqual(decodeRegions(fromHex(regionHex + regionHex)), [region, region]);
});

test('request numbers are unique, and all have a name', () => {
  const ids = [...Object.values(allSpecs).map((spec) => spec.id), ...Object.values(namedRequests)];
  assert.deepEqual(
    ids.sort((a, b) => a - b),
    Array.from({ length: 44 }, (_, i) => i + 1),
  );
  const backIds = [...Object.values(backEndRequests).map((spec) => spec.id), ...Object.values(namedBackEndRequests)];
  assert.deepEqual(
    backIds.sort((a, b) => a - b),
    Array.from({ length: 10 }, (_, i) => i + 1),
  );
  assert.equal(requestName(38), 'REM_MEM_REG');
  assert.equal(requestName(41), 'GET_SHARED_OBJECT');
  assert.equal(requestName(99), 'request 99');
});

test('descriptors go along with what names files', () => {
  const carrying = Object.entries(allSpecs).filter(([, spec]) => spec.fds > 0);
  assert.deepEqual(
    carrying.map(([name, spec]) => `${name} ${spec.fds}`),
    [
      'SET_MEM_TABLE 8',
      'SET_VRING_KICK 1',
      'SET_VRING_CALL 1',
      'SET_VRING_ERR 1',
      'SET_BACKEND_REQ_FD 1',
      'SET_INFLIGHT_FD 1',
      'ADD_MEM_REG 1',
      'REM_MEM_REG 1',
      'SET_LOG_BASE 1',
      'SET_LOG_FD 1',
    ],
  );
});

test('feature sets travel as one number', () => {
  const set = FeatureSet.of(0, 30, 32, 63);
  assert.equal(featuresToU64(set), 0x8000_0001_4000_0001n);
  assert(featuresFromU64(0x8000_0001_4000_0001n).equals(set));
  const names = protocolFeatureNames(FeatureSet.of(protocolFeature.MQ, protocolFeature.XEN_MMAP, 40));
  assert.deepEqual(names, ['MQ', 'XEN_MMAP', 'bit-40']);
});
