import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { census } from '../../src/libc/census.ts';
import { blockBytes, hasty, isDirect, leaveRequests, openDisk, use } from '../support/direct-disk.ts';
import { type DirectRig, deviceNumber, withDirect } from '../support/direct-rig.ts';
import { until } from '../support/guest-fixture.ts';

describe('the end of a vhost-user back-end that has the memory of a guest', () => {
  test('takes the device along, which comes back with the next one', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest();
      for (let round = 0; round < 5; round++) {
        const blk = await openDisk(bus);
        await use(blk, round);
        rig.disk.lazy = round % 2 === 1;
        const left = leaveRequests(blk);
        const removed = new Promise((resolve) => bus.on('removed', resolve));
        rig.peer.hangUp();
        assert.match(await rig.lost(), /the back-end at .*: the other side has closed the connection/);
        assert.deepEqual(await removed, { device: deviceNumber });
        await left;
        rig.disk.lazy = false;
        const added = new Promise((resolve) => bus.on('added', resolve));
        await rig.attach();
        assert.deepEqual(await added, { device: deviceNumber });
        await isDirect(rig);
      }
    }));

  test('is waited for before the device leaves, and before the guest has its memory back', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest();
      const area = await bus.memory.addRegion(blockBytes);
      const blk = await openDisk(bus);
      await use(blk, 1);
      let isGone = (): void => {};
      rig.gone = new Promise((resolve) => {
        isGone = resolve;
      });
      rig.peer.hangUp();
      let isRemoved = false;
      const removed = bus.memory.removeRegion(area).then(() => {
        isRemoved = true;
      });
      await until(() => rig.disk.running.length === 0, 'it has hung up');
      await bus.ping();
      await new Promise((resolve) => setTimeout(resolve, 50));
      assert.deepEqual([isRemoved, (await rig.device())?.dataPath, rig.losses], [false, 'direct', []]);
      isGone();
      await rig.lost();
      await removed;
      rig.gone = Promise.resolve();
      await rig.attach();
      await use(await openDisk(bus), 2);
    }));

  for (const [what, habit] of [
    ['does not answer when a queue stops', (rig: DirectRig) => rig.habits.ignore.add('GET_VRING_BASE')],
    ['answers nonsense', (rig: DirectRig) => rig.habits.babble.add('GET_VRING_BASE')],
    [
      'takes more than it completes',
      (rig: DirectRig) => {
        rig.disk.surplus = 3;
      },
    ],
  ] as const) {
    test(`comes when it ${what}, to a driver that resets its device`, () =>
      withDirect(async (rig) => {
        const bus = await rig.guest();
        const blk = await openDisk(bus);
        await use(blk, 1);
        habit(rig);
        const closing = blk.close();
        assert.match(await rig.lost(), /does not|not answered|protocol|sent/);
        await closing;
        rig.habits.ignore.clear();
        rig.habits.babble.clear();
        rig.disk.surplus = 0;
        await rig.attach();
        await use(await openDisk(bus), 2);
        await isDirect(rig);
      }, hasty));
  }

  test('comes when it completes nothing and does not answer', () =>
    withDirect(async (rig) => {
      rig.disk.lazy = true;
      const blk = await openDisk(await rig.guest());
      const left = leaveRequests(blk);
      await until(() => rig.disk.starts > 0, 'it has started');
      rig.habits.ignore.add('GET_FEATURES');
      assert.match(await rig.lost(), /does not do what it shall/);
      await left;
    }, hasty));

  test('that is asked for by a detach during I/O comes after what it has taken', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest();
      for (let round = 0; round < 4; round++) {
        const blk = await openDisk(bus);
        const left = leaveRequests(blk, 16);
        await rig.detach();
        const ended = await left;
        assert.ok(ended.every(({ status }) => status === 'fulfilled' || status === 'rejected'));
        assert.equal(rig.disk.running.length, 0);
        await until(() => rig.disk.ends.length === round + 1, 'the connection has ended');
        await rig.attach();
      }
      await use(await openDisk(bus), 9);
    }));

  test('leaves nothing in the service, however often it comes', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest();
      await use(await openDisk(bus), 0);
      await rig.detach();
      await until(() => rig.disk.ends.length === 1, 'the connection has ended');
      const before = JSON.stringify(census());
      for (let round = 1; round <= 30; round++) {
        await rig.attach();
        const blk = await openDisk(bus, { notify: (['auto', 'messages', 'own'] as const)[round % 3]! });
        const left = leaveRequests(blk);
        if (round % 2 === 0) {
          await left;
          await blk.close();
        }
        await rig.detach();
        await left;
      }
      await until(() => JSON.stringify(census()) === before, `nothing is kept: ${before} ${JSON.stringify(census())}`);
    }));
});
