import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import type { ConsolePort } from '../../src/guest/index.ts';
import { limits } from '../../src/kit/limits.ts';
import type { Backend, BackendDescription, BackendRequest } from '../../src/ports/backend.ts';
import { control } from '../support/console-end.ts';
import { type ConsoleLane, HostClient, noise, opened, sum, withConsole } from '../support/console-lane.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { mainProgram } from '../support/service-process.ts';
import { Prng } from '../support/virtqueue-pair.ts';

/** A console device that says and does what the test wants. */
class ScriptedConsole implements Backend {
  readonly description: BackendDescription;
  readonly held: BackendRequest[] = [];
  /** Messages of the driver, as hex. */
  readonly log: string[] = [];
  /** What the driver wrote to port 0. */
  written = '';

  constructor(featureBits: readonly number[], queues: number, maxPorts = 2) {
    const config = new Uint8Array(12);
    const view = new DataView(config.buffer);
    view.setUint16(0, 100, true);
    view.setUint16(2, 50, true);
    view.setUint32(4, maxPorts, true);
    this.description = {
      deviceType: 3,
      vendorId: 0,
      uuid: new Uint8Array(16),
      featureBits,
      queueSizes: new Array<number>(queues).fill(64),
      config,
      maxInFlight: 64,
    };
  }

  activate(): void {}
  deactivate(): void {}

  handle(request: BackendRequest): void {
    if (request.queue % 2 === 0) {
      this.held.push(request);
      return;
    }
    const bytes = Buffer.concat(request.readable);
    if (request.queue === 3) this.log.push(bytes.toString('hex'));
    if (request.queue === 1) this.written += bytes.toString();
    request.complete(0);
  }

  /** Puts bytes into the next buffer of a queue; more than fit are cut. */
  put(queue: number, bytes: Uint8Array): boolean {
    const request = this.held.find((each) => each.queue === queue);
    if (request === undefined) return false;
    this.held.splice(this.held.indexOf(request), 1);
    const part = request.writable[0]!;
    const fitting = bytes.subarray(0, part.length);
    part.set(fitting);
    request.complete(fitting.length);
    return true;
  }

  cancel(queue: number): void {
    for (const request of this.held.filter((each) => each.queue === queue)) {
      this.held.splice(this.held.indexOf(request), 1);
      request.release();
    }
  }

  writeConfig(): boolean {
    return false;
  }

  async close(): Promise<void> {}
}

const withScript = (device: ScriptedConsole, run: (rig: ConsoleLane) => Promise<void>): Promise<void> =>
  withConsole([['unused', 'socket']], run, () => device);

const multiport = 1;
const textOf = (bytes: Uint8Array | null): string | null => (bytes === null ? null : Buffer.from(bytes).toString());

test('a device without MULTIPORT has one port that is open all the time', () => {
  const device = new ScriptedConsole([0], 2);
  return withScript(device, async (rig) => {
    const driver = await rig.driver();
    assert.deepEqual([driver.multiport, driver.size, driver.ports.size], [false, { columns: 100, rows: 50 }, 1]);
    const port = await driver.port(0);
    assert.deepEqual([port.isOpen, port.hostOpen, port.isConsole, port.name], [true, true, true, '']);
    await port.untilHostOpen();
    await port.open();
    await port.close();
    await port.write(Buffer.from('hello'));
    assert.equal(device.written, 'hello');
    device.put(0, Buffer.from('login'));
    assert.equal(textOf(await port.read()), 'login');
    await assert.rejects(driver.port(1), isCode('not-found'));
  });
});

test('ports come, get names, go and come back', () => {
  const device = new ScriptedConsole([multiport], 6);
  return withScript(device, async (rig) => {
    const driver = await rig.driver();
    const seen: string[] = [];
    driver.on('port', ({ id }) => seen.push(`+${id}`));
    driver.on('removed', ({ port }) => seen.push(`-${port}`));
    await until(() => device.log[0] === '0000000000000100', 'DEVICE_READY');
    const waiting = driver.port(1);
    device.put(2, control(1, 1, 0));
    const port = await waiting;
    port.on('named', ({ name }) => seen.push(name));
    await until(() => device.log[1] === '0100000003000100', 'PORT_READY');
    await port.open();
    assert.equal(device.log[2], '0100000006000100');
    device.put(2, control(1, 7, 1, Buffer.from('com.example.\u00e4\x1b[2J\0')));
    device.put(2, control(1, 6, 1));
    await port.untilHostOpen();
    assert.equal(port.name, 'com.example.\u00e4?[2J');
    device.put(4, Buffer.from('before it goes'));
    device.put(2, control(1, 2, 0));
    assert.equal(textOf(await port.read()), 'before it goes');
    assert.equal(await port.read(), null);
    device.put(2, control(1, 1, 0));
    await until(() => device.log.length === 5, 'PORT_READY and PORT_OPEN again');
    assert.deepEqual(device.log.slice(3), ['0100000003000100', '0100000006000100']);
    assert.equal(await driver.port(1), port);
    assert.deepEqual(seen, ['+1', 'com.example.\u00e4?[2J', '-1', '+1']);
  });
});

test('messages that make no sense change nothing', () => {
  const device = new ScriptedConsole([multiport], 6);
  return withScript(device, async (rig) => {
    const driver = await rig.driver();
    const port = async (): Promise<ConsolePort> => {
      device.put(2, control(0, 1, 0));
      return await driver.port(0);
    };
    await until(() => device.held.some(({ queue }) => queue === 2), 'there are buffers');
    await port();
    const prng = new Prng(9);
    const heads = [2, 7, 0x7fffffff, 0x80000000, 0xffffffff];
    for (let i = 0; i < 2000; i++) {
      const bytes = prng.chance(0.5)
        ? control(prng.pick(heads), prng.below(12), prng.below(3))
        : control(prng.below(2), 8 + prng.below(60000), prng.u32() & 0xffff).subarray(0, prng.below(9));
      while (!device.put(2, bytes)) await new Promise((resolve) => setImmediate(resolve));
      // Nothing at all, on a data queue: the buffer comes back.
      device.put(0, new Uint8Array(0));
    }
    assert.equal(driver.ports.size, 1);
    await until(() => device.held.some(({ queue }) => queue === 0), 'the data buffers are back');
    const open = await port();
    await open.open();
    device.put(0, Buffer.from('fine'));
    assert.equal(textOf(await open.read()), 'fine');
    assert.equal(open.hostOpen, false);
  });
});

test('a flood of ends and of bytes stays in the buffers that were given', () => {
  const device = new ScriptedConsole([multiport], 6);
  return withScript(device, async (rig) => {
    const driver = await rig.driver({ buffers: 4, bufferBytes: 16 });
    await until(() => device.held.some(({ queue }) => queue === 2), 'there are buffers');
    device.put(2, control(0, 1, 0));
    const port = await driver.port(0);
    await port.open();
    await until(() => device.held.filter(({ queue }) => queue === 0).length === 4, 'four buffers');
    let given = 0;
    for (let i = 0; i < 300; i++) {
      while (!device.put(2, control(0, 6, i & 1))) await new Promise((resolve) => setImmediate(resolve));
      if (device.put(0, Buffer.from(`${i % 10}`.repeat(30)))) given += 1;
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.equal(given, 4, 'a port that is not read takes no more');
    let read = 0;
    for (let ends = 0; read < 4; ) {
      const bytes = await port.read();
      if (bytes === null) ends += 1;
      else {
        read += 1;
        assert.equal(bytes.length, 16);
      }
      assert.ok(ends <= 5);
    }
  });
});

test('a device that says it has more ports than queues or than we take', async () => {
  const many = new ScriptedConsole([multiport], 6, 0xffffffff);
  await withScript(many, async (rig) => {
    const driver = await rig.driver();
    await assert.rejects(driver.port(2), isCode('not-found'));
    assert.ok(limits.consolePortsMax < 100);
  });
  const none = new ScriptedConsole([multiport], 6, 0);
  await withScript(none, (rig) => assert.rejects(rig.driver(), isCode('protocol-violation')));
  const short = new ScriptedConsole([multiport], 2);
  await withScript(short, (rig) => assert.rejects(rig.driver(), isCode('protocol-violation')));
});

test('too many writes are refused, and all of the others end with the device', () => {
  const device = new ScriptedConsole([0], 2);
  device.handle = (request) => void device.held.push(request);
  return withScript(device, async (rig) => {
    const driver = await rig.driver();
    const port = await driver.port(0);
    const writes = Array.from({ length: limits.guestQueueWaiters }, () =>
      assert.rejects(port.write(new Uint8Array(9000)), isCode('bus-lost')),
    );
    await assert.rejects(port.write(new Uint8Array(1)), isCode('limit-reached'));
    const reading = assert.rejects(port.read(), isCode('bus-lost'));
    await driver.close();
    await Promise.all([...writes, reading]);
  });
});

interface Run {
  readonly child: ReturnType<typeof spawn>;
  readonly code: Promise<number>;
  out(): Buffer;
  err(): string;
}

function vmsgConsole(rig: ConsoleLane, ...args: string[]): Run {
  const child = spawn(process.execPath, [mainProgram, 'guest', 'console', '0', '--bus', rig.at('bus'), ...args]);
  const out: Buffer[] = [];
  let err = '';
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr.on('data', (chunk) => {
    err += String(chunk);
  });
  const code = once(child, 'close').then(([status]) => Number(status));
  return { child, code, out: () => Buffer.concat(out), err: () => err };
}

test('vmsg guest console: a pipe through a port, in a script', () =>
  withConsole(
    [
      ['con', 'socket'],
      ['data', 'socket'],
    ],
    async (rig) => {
      const [down, up] = [noise(300_000), noise(300_000)];
      const client = await HostClient.open(rig.at('data'));
      const run = vmsgConsole(rig, '--port', '1');
      run.child.stdin?.end(up);
      client.socket.write(down);
      assert.equal(sum(await client.bytes(up.length)), sum(up));
      await until(() => run.out().length === down.length, 'stdout has all of it');
      assert.equal(run.child.exitCode, null, 'the end of stdin is not the end');
      await client.end();
      assert.deepEqual([await run.code, run.err()], [0, '']);
      assert.equal(sum(run.out()), sum(down));
    },
  ));

test('vmsg guest console --eof ends with stdin, after the host has all of it', () =>
  withConsole([['con', 'socket']], async (rig) => {
    const run = vmsgConsole(rig, '--eof');
    const data = noise(500_000);
    run.child.stdin?.end(data);
    const client = await HostClient.open(rig.at('con'));
    client.socket.pause();
    setTimeout(() => client.socket.resume(), 50);
    assert.equal(sum(await client.bytes(data.length)), sum(data));
    assert.equal(await run.code, 0, run.err());
    await until(() => client.ended, 'the host meets the end');
  }));

test('vmsg guest console: what is wrong is said', () =>
  withConsole([['con', 'socket']], async (rig) => {
    const run = vmsgConsole(rig, '--port', '7');
    assert.equal(await run.code, 69);
    assert.match(run.err(), /^vmsg guest: device 0 has no port 7\n$/);
    const wrong = vmsgConsole(rig, '--port', 'x');
    assert.equal(await wrong.code, 64);
    const driver = await rig.driver();
    const client = await HostClient.open(rig.at('con'));
    await opened(driver, 0);
    await client.end();
  }));
