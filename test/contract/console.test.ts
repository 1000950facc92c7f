import assert from 'node:assert/strict';
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { ConsoleDriver } from '../../src/guest/index.ts';
import { readStream } from '../../src/libc/byte-stream.ts';
import { linux } from '../../src/libc/constants.ts';
import { ioctlPointer } from '../../src/libc/native.ts';
import { HostClient, noise, opened, readBytes, sum, withConsole } from '../support/console-lane.ts';
import { isCode, until } from '../support/guest-fixture.ts';

const one: [string, 'socket'][] = [['con', 'socket']];
const two: [string, 'socket'][] = [...one, ['data', 'socket']];
const pause = () => new Promise((resolve) => setTimeout(resolve, 30));

for (const options of [
  {},
  { notify: 'descriptors' },
  { packed: true },
  { packed: true, inOrder: true, notify: 'descriptors' },
  { inOrder: true },
] as const) {
  test(`eight ports carry bytes both ways at a time, with ${JSON.stringify(options)}`, () =>
    withConsole(
      Array.from({ length: 8 }, (_, i) => [`port-${i}`, 'socket']),
      async (rig) => {
        const driver = await rig.driver(options);
        assert.equal(driver.multiport, true);
        await Promise.all(
          Array.from({ length: 8 }, async (_, id) => {
            const client = await HostClient.open(rig.at(`port-${id}`));
            const port = await opened(driver, id);
            assert.equal(port.isConsole, id === 0);
            const [down, up] = [noise(300_000 + id), noise(200_000 + id)];
            client.socket.write(down);
            const [got, sent] = await Promise.all([
              readBytes(port, down.length),
              client.bytes(up.length),
              port.write(up),
            ]);
            assert.deepEqual([sum(got), sum(sent)], [sum(down), sum(up)]);
            assert.equal(port.name, `port-${id}`);
            await client.end();
          }),
        );
        assert.equal(driver.ports.size, 8);
        await driver.close();
      },
    ));
}

test('many writes keep their order, whatever their sizes', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver({ buffers: 3, bufferBytes: 100 });
    const client = await HostClient.open(rig.at('data'));
    const port = await opened(driver, 1);
    const parts = Array.from({ length: 200 }, (_, i) => noise((i * 37) % 450));
    await Promise.all(parts.map((part) => port.write(part)));
    const all = Buffer.concat(parts);
    assert.equal(sum(await client.bytes(all.length)), sum(all));
    await client.end();
  }));

test('a guest that does not read makes the host wait, and then gets every byte', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver();
    const client = await HostClient.open(rig.at('data'));
    const port = await opened(driver, 1);
    const data = noise(8 * 1024 * 1024);
    client.socket.write(data);
    const memory = process.memoryUsage().arrayBuffers;
    for (let last = -1; last !== client.socket.bytesWritten - client.socket.writableLength; await pause()) {
      last = client.socket.bytesWritten - client.socket.writableLength;
    }
    // Node counts what it was given: the rest of one large write waits in the kernel's call.
    assert.ok(client.socket.writableLength > 0, 'the host program waits');
    assert.ok(process.memoryUsage().arrayBuffers - memory < 4 * 1024 * 1024, 'nobody gathers the bytes');
    assert.equal(sum(await readBytes(port, data.length)), sum(data));
    await client.end();
  }));

test('a host program that does not read makes the guest wait, and then gets every byte', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver();
    const client = await HostClient.open(rig.at('data'));
    const port = await opened(driver, 1);
    client.socket.pause();
    const data = noise(8 * 1024 * 1024);
    let written = false;
    const writing = port.write(data).then(() => {
      written = true;
    });
    const queue = async () => (await rig.lane.call('inspect', {})).buses[0]?.devices[0]?.queues[5];
    for (let last = -1, now = 0; last !== now; await pause()) {
      last = now;
      now = (await rig.lane.call('inspect', {})).buses[0]?.devices[0]?.bytes ?? 0;
    }
    assert.equal(written, false);
    assert.equal((await queue())?.inFlight, 8, 'the buffers stay with the device');
    client.socket.resume();
    assert.equal(sum(await client.bytes(data.length)), sum(data));
    await writing;
    await client.end();
  }));

test('a host program comes and goes: each session has its bytes and its end', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver();
    const port = await driver.port(1);
    await port.open();
    const events: string[] = [];
    port.on('hostOpened', () => events.push('opened'));
    port.on('hostClosed', () => events.push('closed'));
    for (let session = 0; session < 5; session++) {
      const client = await HostClient.open(rig.at('data'));
      await port.untilHostOpen();
      await port.write(Buffer.from(`welcome ${session}`));
      await client.bytes(9);
      client.socket.end(`bye ${session}`);
      client.socket.destroySoon();
      const heard: Buffer[] = [];
      for await (const bytes of port) heard.push(Buffer.from(bytes));
      assert.deepEqual([Buffer.concat(heard).toString(), client.heard], [`bye ${session}`, `welcome ${session}`]);
      assert.equal(port.hostOpen, false);
      await port.write(Buffer.from('nobody gets this'));
    }
    assert.deepEqual(events, new Array(5).fill(['opened', 'closed']).flat());
  }));

test('a host program that only stops sending still hears the guest', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver();
    const client = await HostClient.open(rig.at('data'));
    const port = await opened(driver, 1);
    client.socket.end('question');
    assert.equal(String(await readBytes(port, 8)), 'question');
    await pause();
    await port.write(Buffer.from('answer'));
    assert.equal(String(await client.bytes(6)), 'answer');
    await client.end();
    assert.equal(await port.read(), null);
  }));

test('the guest closes a port and opens it again', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver();
    const client = await HostClient.open(rig.at('data'));
    const port = await opened(driver, 1);
    const reading = port.read();
    await assert.rejects(port.read(), isCode('in-use'));
    await port.write(Buffer.from('last words'));
    await port.close();
    assert.equal(await reading, null);
    await until(() => client.ended, 'the host program meets the end');
    assert.equal(client.heard, 'last words');
    assert.deepEqual([await port.read(), port.isOpen], [null, false]);
    const next = await HostClient.open(rig.at('data'));
    next.socket.write('early');
    await until(() => port.hostOpen, 'the guest hears of it while closed');
    await port.open();
    assert.equal(String(await readBytes(port, 5)), 'early');
    await next.end();
  }));

test('a guest that is gone takes its buffers along: data ports end, the console stays for the next guest', () =>
  withConsole(two, async (rig) => {
    const first = await rig.driver();
    const [con, data] = [await HostClient.open(rig.at('con')), await HostClient.open(rig.at('data'))];
    for (const id of [0, 1]) await opened(first, id);
    first.device.bus.close();
    await until(() => data.ended, 'the data port ends');
    assert.equal(con.ended, false);
    con.socket.write('typed in between');
    const state = async () => (await rig.lane.call('inspect', {})).buses[0];
    for (let turn = 0; turn < 1000 && (await state())?.state !== 'listening'; turn++) await pause();
    const second = await rig.driver();
    const port = await opened(second, 0);
    assert.equal(String(await readBytes(port, 16)), 'typed in between');
    await port.write(Buffer.from('login: '));
    assert.equal(String(await con.bytes(7)), 'login: ');
    await con.end();
  }));

test('a detach does not wait for receive buffers or for a host program that does not read', () =>
  withConsole(two, async (rig) => {
    const driver = await rig.driver();
    const client = await HostClient.open(rig.at('data'));
    client.socket.pause();
    const port = await opened(driver, 1);
    const [reading, writing] = [port.read(), port.write(noise(2 * 1024 * 1024))];
    const ends = [assert.rejects(reading, isCode('not-found')), assert.rejects(writing, isCode('not-found'))];
    await pause();
    await rig.detach();
    await Promise.all(ends);
    await assert.rejects(port.write(Buffer.from('x')), isCode('not-found'));
    await rig.attach();
    const again = await ConsoleDriver.open(driver.device.bus, (await driver.device.bus.devices())[0]!);
    assert.equal((await again.port(1)).id, 1);
    await client.end();
  }));

for (const options of [{}, { packed: true }, { inOrder: true }, { packed: true, inOrder: true }]) {
  test(`after an orderly restart the guest goes on with the buffers it had given: ${JSON.stringify(options)}`, () =>
    withConsole(two, async (rig) => {
      const driver = await rig.driver({ reconnect: true, ...options });
      const first = await HostClient.open(rig.at('data'));
      const port = await opened(driver, 1);
      const reading = port.read();
      const state = async () => (await rig.lane.call('inspect', {})).buses[0]?.devices[0]?.queues[4];
      assert.equal((await state())?.inFlight, 8);
      await rig.restart();
      await until(() => first.ended, 'the old connection is gone');
      assert.equal(await reading, null, 'its end is told');
      const second = await HostClient.open(rig.at('data'));
      await port.untilHostOpen();
      const [down, up] = [noise(100_000), noise(100_000)];
      second.socket.write(down);
      await port.write(up);
      assert.equal(sum(await readBytes(port, down.length)), sum(down));
      assert.equal(sum(await second.bytes(up.length)), sum(up));
      for (let turn = 0; turn < 1000 && (await state())?.inFlight !== 8; turn++) await pause();
      assert.equal((await state())?.inFlight, 8, 'as many as before');
      await second.end();
    }));
}

test('a console on a pseudo terminal: bytes both ways, and the window', () =>
  withConsole([['tty', 'pty']], async (rig) => {
    const driver = await rig.driver();
    assert.deepEqual(driver.size, { columns: 80, rows: 24 });
    const sizes: unknown[] = [];
    driver.on('resized', (size) => sizes.push(size));
    const fd = openSync(rig.at('tty'), constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
    const port = await opened(driver, 0);
    assert.equal(port.name, 'tty');
    const data = noise(200_000);
    const heard = new Uint8Array(data.length);
    let length = 0;
    const writing = port.write(data);
    await until(() => {
      const count = readStream(fd, heard.subarray(length));
      length += typeof count === 'number' ? count : 0;
      return length === data.length;
    }, 'the terminal has all of it');
    await writing;
    assert.equal(sum(heard), sum(data));
    writeSync(fd, 'ls -l\n');
    assert.equal(String(await readBytes(port, 6)), 'ls -l\n');
    ioctlPointer(fd, linux.TIOCSWINSZ, 'void *', new Uint16Array([50, 132, 0, 0]));
    await until(() => sizes.length > 0, 'the guest hears of the size');
    assert.deepEqual([sizes, driver.size], [[{ columns: 132, rows: 50 }], { columns: 132, rows: 50 }]);
    assert.deepEqual([...(await driver.device.config.read(0, 4))], [132, 0, 50, 0]);
    closeSync(fd);
    assert.equal(await port.read(), null);
  }));

test('a port that the device cannot have, and a device that is no console', () =>
  withConsole(one, async (rig) => {
    const driver = await rig.driver();
    await assert.rejects(driver.port(1), isCode('not-found'));
    await assert.rejects(driver.port(-1), isCode('not-found'));
    const port = await driver.port(0);
    const waiting = assert.rejects(port.untilHostOpen(), isCode('bus-lost'));
    await driver.close();
    await waiting;
    await assert.rejects(port.read(), isCode('bus-lost'));
    await assert.rejects(driver.port(0), isCode('bus-lost'));
    const { bus } = driver.device;
    await assert.rejects(ConsoleDriver.open(bus, 0, { buffers: 0 }), isCode('invalid-request'));
    await assert.rejects(ConsoleDriver.open(bus, 7), isCode('not-found'));
  }));
