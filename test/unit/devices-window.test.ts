import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { devicesWindow } from '../../src/device/devices-window.ts';

const u16 = fc.oneof(fc.nat(20), fc.nat(0xffff), fc.constantFrom(0x7fff, 0x8000, 0xfffe, 0xffff));

test('a window shows exactly the devices in it and where the next one is', () => {
  const property = fc.property(
    fc.uniqueArray(u16, { maxLength: 20 }),
    u16,
    u16,
    fc.integer({ min: 38, max: 250 }),
    (numbers, offset, requested, bytesMax) => {
      const devices = new Map(numbers.map((number) => [number, null]));
      const answer = devicesWindow(devices, offset, requested, bytesMax);
      const { count, bitmap, nextOffset } = answer;
      assert.equal(answer.offset, offset);
      assert.ok(count <= requested && offset + count <= 0x10000 && bitmap.length <= bytesMax);
      assert.equal(bitmap.length, Math.ceil(count / 8));
      for (let i = 0; i < bitmap.length * 8; i++) {
        const shown = ((bitmap[i >> 3] ?? 0) & (1 << (i & 7))) !== 0;
        assert.equal(shown, i < count && devices.has(offset + i), `number ${offset + i}`);
      }
      const beyond = numbers.filter((number) => number >= offset + count && number > offset);
      assert.equal(nextOffset, beyond.length === 0 ? 0 : Math.min(...beyond));
    },
  );
  fc.assert(property, { seed: 3, numRuns: 3000 });
});
