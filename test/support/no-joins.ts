import assert from 'node:assert/strict';
import { DataPlane } from '../../src/bridge/data-plane/data-plane.ts';

/** For tests in which no notification has to be passed on. */
export const noJoins = (): DataPlane =>
  new DataPlane({ places: 1, open: () => assert.fail('nothing is to be passed on here') });
