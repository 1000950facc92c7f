import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseDeviceNumber } from '../../src/bridge/bus/device-numbers.ts';

const identity = new Uint8Array(32);

test('a number that another attachment wants is left to it, also before it is there', () => {
  assert.equal(chooseDeviceNumber(undefined, identity, new Map(), new Set(), [], [0, 2]), 1);
  assert.equal(chooseDeviceNumber(undefined, identity, new Map(), new Set([1]), [], [0, 2]), 3);
});

test('the number wanted is given, unless a device has it', () => {
  assert.equal(chooseDeviceNumber(2, identity, new Map(), new Set([2]), [], []), 2);
  assert.equal(chooseDeviceNumber(2, identity, new Map([[2, {}]]), new Set(), [], []), undefined);
});
