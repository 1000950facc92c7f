import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { BlkDriver, connect } from '../../src/guest/index.ts';
import { guestBackend, withRig } from '../support/served-rig.ts';
import { mainProgram } from '../support/service-process.ts';

test('a serving process that does not give back the memory of a driver that is gone is reported until it does', async () => {
  await withRig(async (rig) => {
    const lane = await rig.lane('inline', { drv: 'driver', dev: 'device' });
    const args = ['guest', 'serve', '--bus', rig.socket('dev'), '--disk-image', rig.image];
    const server = spawn(process.execPath, [mainProgram, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    try {
      await once(server.stdout, 'data');
      await rig.sees((event) => event.type === 'served-devices' && event.devices.includes(0), 'the device');
      await lane.call('attach', { bus: 'drv', attachment: 'a', backend: guestBackend('relayed', 'dev', 0) });
      const bus = await connect({ path: rig.socket('drv') });
      const blk = await BlkDriver.open(bus, 0);
      assert.equal((await blk.read(0, 512)).length, 512);
      server.kill('SIGSTOP');
      bus.close();
      await rig.sees((event) => event.type === 'share-stuck', 'the report');
      const stuck = rig.events.find((event) => event.type === 'share-stuck');
      assert.ok(stuck?.type === 'share-stuck' && stuck.ageMs > 0);
      const { ageMs: _age, ...about } = stuck;
      const mapper = { mapperBus: 'dev', mapperDomid: 1 };
      assert.deepEqual(about, { type: 'share-stuck', bus: 'drv', domid: 1, pages: 4096, ...mapper });
      const { buses } = await lane.call('inspect', {});
      assert.deepEqual(
        buses.map(({ bus: name, stuck: kept }) => [name, kept.map(({ domid, pages }) => [domid, pages])]),
        [
          ['drv', []],
          ['dev', [[1, 4096]]],
        ],
      );
      // It gets a chance: once it runs again it answers, and the next driver can use the device.
      server.kill('SIGCONT');
      await rig.sees((event) => event.type === 'share-released', 'the end of it');
      const next = await connect({ path: rig.socket('drv') });
      const again = await BlkDriver.open(next, 0);
      assert.equal((await again.read(0, 512)).length, 512);
      await again.close();
      next.close();
    } finally {
      server.kill('SIGKILL');
    }
  });
});
