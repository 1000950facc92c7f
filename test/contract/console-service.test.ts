import assert from 'node:assert/strict';
import { readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ConsoleDriver, connect } from '../../src/guest/index.ts';
import { HostClient, noise, opened, readBytes, sum } from '../support/console-lane.ts';
import { until } from '../support/guest-fixture.ts';
import { runVmsg } from '../support/run-command.ts';
import { ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const home = new ServiceHome({
  domains: { guests: {} },
  buses: { b: { domain: 'guests', transport: 'loopback', role: 'driver' } },
  backends: {
    con: {
      type: 'console',
      ports: [
        { name: 'tty', pty: 'tty' },
        { name: 'data', socket: 'data.sock' },
      ],
      cols: 132,
      rows: 43,
    },
  },
  attachments: { con: { bus: 'b', backend: 'con' } },
});
const at = (name: string): string => join(home.directory, name);

let service: ServiceProcess;
before(async () => {
  service = await home.start();
});
after(async () => {
  await service.kill();
  home.remove();
});

test('paths of the config file count from its directory', () => {
  assert.match(readlinkSync(at('tty')), /^\/dev\/pts\/\d+$/);
  assert.ok(statSync(at('data.sock')).isSocket());
});

test('the service is killed again and again: the guest goes on, its ports stay open', async () => {
  const bus = await connect({ path: home.busPath('b'), reconnect: { totalMs: 60_000 } });
  const driver = await ConsoleDriver.open(bus, 0);
  assert.deepEqual(driver.size, { columns: 132, rows: 43 });
  const port = await driver.port(1);
  await port.open();
  for (let kills = 0; kills < 6; kills++) {
    const client = await HostClient.open(at('data.sock'));
    await port.untilHostOpen();
    const [down, up] = [noise(50_000), noise(50_000)];
    client.socket.write(down);
    const [got] = await Promise.all([readBytes(port, down.length), port.write(up)]);
    assert.deepEqual([sum(got), sum(await client.bytes(up.length))], [sum(down), sum(up)]);
    const ending = port.read();
    // Under way when the service goes: nobody may get it, and it may not hold anything up.
    const writing = port.write(noise(1_000_000));
    client.socket.pause();
    await (kills % 2 === 0 ? service.kill() : service.stop());
    service = await home.start();
    assert.equal(await ending, null, 'the end of the session is told');
    await writing;
    await client.end();
  }
  await driver.close();
  bus.close();
});

test('over the API: a console that is attached, its queues, and what is refused', async () => {
  const { api } = service;
  const spec = { type: 'console', ports: [{ socket: at('own.sock') }] };
  assert.equal((await api.call('PUT', '/v1/backends/own', spec)).status, 201);
  await api.call('PUT', '/v1/attachments/own', { bus: 'b', backend: 'own', deviceNumber: 7 });
  await assert.rejects(api.call('PUT', '/v1/attachments/second', { bus: 'b', backend: 'own' }), /serves one guest/);
  const bus = await connect({ path: home.busPath('b') });
  const driver = await ConsoleDriver.open(bus, 7);
  assert.equal(driver.size, undefined);
  const client = await HostClient.open(at('own.sock'));
  await opened(driver, 0);
  const { status } = (await api.call('GET', '/v1/attachments/own')).body as {
    status: { deviceType: string; queues: { index: number; inFlight: number }[] };
  };
  assert.deepEqual([status.deviceType, status.queues.map(({ index }) => index)], ['console', [0, 1, 2, 3]]);
  assert.equal(status.queues[0]?.inFlight, 8);
  await api.call('DELETE', '/v1/attachments/own');
  await until(() => client.ended, 'the host program meets the end');
  bus.close();
  for (const [ports, pointer] of [
    [[], /ports/],
    [[{}], /needs a socket or a pty/],
    [[{ socket: '/a', pty: '/b' }], /needs a socket or a pty/],
    [[{ socket: '/a' }, { pty: '/a' }], /the path of another port/],
    [[{ socket: 'relative' }], /socket/],
    [new Array(32).fill({ socket: '/a' }), /ports/],
    [[{ socket: '/a', name: 'x'.repeat(65) }], /name/],
  ] as const) {
    await assert.rejects(api.call('PUT', '/v1/backends/bad', { type: 'console', ports }), pointer);
  }
  const half = { type: 'console', ports: [{ socket: '/a' }], cols: 80 };
  await assert.rejects(api.call('PUT', '/v1/backends/bad', half), /rows.*belong together/);
});

test('vmsg backend add --type console', async () => {
  const env = { VMSG_API: home.apiSocket };
  const added = await runVmsg(
    ['backend', 'add', 'cli', '--type', 'console', '--socket', at('cli.sock'), '--name', 'tty'],
    env,
  );
  assert.equal(added.code, 0, added.stderr);
  const { body } = await service.api.call('GET', '/v1/backends/cli');
  assert.deepEqual((body as { spec: object }).spec, {
    type: 'console',
    ports: [{ socket: at('cli.sock'), name: 'tty' }],
  });
  const listed = await runVmsg(['backend', 'ls'], env);
  assert.match(listed.stdout, new RegExp(`cli +console +${at('cli.sock')}`));
});
