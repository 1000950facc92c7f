import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { runGuest } from '../../src/app/cli/guest.ts';
import { laneOptions } from '../../src/app/lane-options.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import { BlkDriver, connect } from '../../src/guest/index.ts';
import { census } from '../../src/libc/census.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { until } from '../support/guest-fixture.ts';
import { settledCensus } from '../support/settled-census.ts';

/** The guest and its command against the real bridge. */
const directory = mkdtempSync(join(tmpdir(), 'vmsg-guest-'));
const at = (name: string): string => join(directory, name);
const content = randomBytes(3 * 1024 * 1024 + 100);
const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const lane = new InlineLane((emit) => laneOptions(new LoopPoller(), emit));
const scratch = { type: 'blk', path: at('scratch'), readOnly: false, serial: 'scratch' } as const;
const attachScratch = () => lane.call('attach', { bus: 'b', attachment: 'scratch', backend: scratch });

before(async () => {
  writeFileSync(at('disk'), content);
  writeFileSync(at('scratch'), new Uint8Array(2 * 1024 * 1024));
  await lane.call('openBus', {
    bus: 'b',
    transport: 'loopback',
    role: 'driver',
    domid: 4,
    socketPath: at('bus'),
    socketMode: 0o600,
    admittedUids: [process.getuid?.() ?? 0],
    maxMessageSizeBytes: 64,
    ringMaxBytes: 65536,
    recoveryDir: at('recovery'),
  });
  const disk = { type: 'blk', path: at('disk'), readOnly: true, serial: 'content' } as const;
  await lane.call('attach', { bus: 'b', attachment: 'disk', backend: disk });
  await attachScratch();
  const entropy = { type: 'rng', source: '/dev/urandom' } as const;
  await lane.call('attach', { bus: 'b', attachment: 'rng', backend: entropy });
  await lane.call('listenBus', { bus: 'b' });
});

after(async () => {
  await lane.call('shutdown', {});
  rmSync(directory, { recursive: true, force: true });
});

interface Run {
  readonly code: number;
  readonly out: Buffer;
  readonly err: string;
}

async function vmsg(args: string[], onOut: (text: string) => void = () => {}): Promise<Run> {
  const out: Buffer[] = [];
  let err = '';
  const write = (data: string | Uint8Array): void => {
    out.push(Buffer.from(data as Uint8Array));
    onOut(String(data));
  };
  const io = { stdout: { write }, stderr: { write: (text: string) => (err += text) }, env: {}, cwd: directory };
  const code = await runGuest([...args, '--bus', 'bus'], io);
  return { code, out: Buffer.concat(out), err };
}

async function ok(args: string[]): Promise<Run> {
  const run = await vmsg(args);
  assert.equal(run.code, 0, run.err);
  return run;
}

for (const notify of ['messages', 'descriptors'] as const) {
  test(`a disk is written and read with ${notify}, and nothing is left`, async () => {
    const counted = await settledCensus();
    const bus = await connect({ path: at('bus') });
    const blk = await BlkDriver.open(bus, 1, { notify });
    assert.equal(await blk.getId(), 'scratch');
    const data = randomBytes(1024 * 1024 + 512);
    await blk.write(7, data);
    await blk.flush();
    assert(data.equals(await blk.read(7, data.length)));
    assert(data.equals(readFileSync(at('scratch')).subarray(7 * 512, 7 * 512 + data.length)));
    await blk.close();
    bus.close();
    const same = () => JSON.stringify(census()) === counted;
    await until(same, `nothing is left: ${JSON.stringify([counted, census()])}`);
  });
}

test('enumerate, info and ping', async () => {
  assert.match(String((await ok(['enumerate'])).out), /^DEVICE +TYPE.*\n0 +blk.*\n1 +blk.*\n2 +rng/);
  const devices = JSON.parse(String((await ok(['enumerate', '--json'])).out));
  assert.deepEqual(
    devices.map((device: { number: number; name: string }) => [device.number, device.name]),
    [
      [0, 'blk'],
      [1, 'blk'],
      [2, 'rng'],
    ],
  );
  assert.match(String((await ok(['info', '0'])).out), /features +.*RO.*VERSION_1/);
  assert(JSON.parse(String((await ok(['info', '2', '--json'])).out)).features.includes('ACCESS_PLATFORM'));
  assert(JSON.parse(String((await ok(['ping', '--json'])).out)).ms >= 0);
});

test('read, any bytes of it, to a file and to stdout', async () => {
  const { out } = await ok(['blk', '0', 'read', '--out', '-', '--offset', '1000', '--length', '5001']);
  assert(out.equals(content.subarray(1000, 6001)));
  await ok(['blk', '0', 'read', '--out', 'copy']);
  assert(readFileSync(at('copy')).equals(Buffer.concat([content, Buffer.alloc(412)])));
});

test('write keeps what surrounds it; verify and copy', async () => {
  writeFileSync(at('scratch'), Buffer.alloc(2 * 1024 * 1024, 9));
  writeFileSync(at('input'), content.subarray(0, 700_001));
  await ok(['blk', '1', 'write', '--in', 'input', '--offset', '4k']);
  const file = readFileSync(at('scratch'));
  assert(file.subarray(4096, 4096 + 700_001).equals(content.subarray(0, 700_001)));
  assert.equal(file[4095], 9);
  assert.equal(file[4096 + 700_001], 9);
  await ok(['blk', '1', 'verify', '--against', 'input', '--offset', '4k']);
  await ok(['blk', '0', 'verify', '--sha256', sum(content), '--length', String(content.length)]);
  await ok(['blk', '0', 'copy', '--to', '1', '--length', '1M']);
  assert(
    readFileSync(at('scratch'))
      .subarray(0, 1 << 20)
      .equals(content.subarray(0, 1 << 20)),
  );
  await ok(['blk', '1', 'copy', '--from', '0', '--length', '512']);
  const differs = await vmsg(['blk', '0', 'verify', '--sha256', '0'.repeat(64)]);
  assert.equal(differs.code, 65);
});

test('random bytes', async () => {
  assert.equal((await ok(['rng', '2', '--bytes', '3k'])).out.length, 3072);
  assert.match(String((await ok(['rng', '2', '--bytes', '16', '--hex'])).out), /^[0-9a-f]{32}\n$/);
});

const failures: Array<[number, RegExp, ...string[]]> = [
  [64, /no command 'guest frob'/, 'frob'],
  [64, /no command 'guest blk frob'/, 'blk', '0', 'frob'],
  [64, /--bogus/, 'ping', '--bogus'],
  [64, /takes no --hex/, 'ping', '--hex'],
  [64, /needs a device/, 'info'],
  [64, /'x' is no number/, 'info', 'x'],
  [64, /unexpected argument 'y'/, 'info', '0', 'y'],
  [64, /'3x' is no size/, 'rng', '2', '--bytes', '3x'],
  [64, /needs --out/, 'blk', '0', 'read'],
  [64, /--sha256 HEX or --against/, 'blk', '0', 'verify'],
  [64, /64 hexadecimal/, 'blk', '0', 'verify', '--sha256', 'abc'],
  [64, /--to DEVICE or --from/, 'blk', '0', 'copy', '--to', '1', '--from', '1'],
  [64, /exceed the disk/, 'blk', '0', 'read', '--out', '-', '--offset', '1G'],
  [64, /read-only/, 'blk', '0', 'write', '--in', 'disk'],
  [64, /rng, not blk/, 'blk', '2', 'read', '--out', 'x'],
  [69, /device 7/, 'info', '7'],
  [74, /ENOENT/, 'blk', '1', 'write', '--in', 'missing'],
  [74, /ENOENT|EACCES|EISDIR/, 'blk', '0', 'read', '--out', 'no/such/folder'],
];

for (const [code, text, ...args] of failures) {
  test(`vmsg guest ${args.join(' ')} ends with ${code}`, async () => {
    const run = await vmsg(args);
    assert.equal(run.code, code, run.err);
    assert.match(run.err, /^vmsg guest: [^\n]+\n$/);
    assert.match(run.err, text);
  });
}

test('without a bus, and with one that nobody serves', async () => {
  let err = '';
  const io = {
    stdout: { write: () => {} },
    stderr: { write: (text: string) => (err += text) },
    env: {},
    cwd: directory,
  };
  assert.equal(await runGuest(['ping'], io), 64);
  assert.equal(await runGuest(['ping', '--bus', 'nothing'], io), 69);
  assert.match(err, /needs --bus SOCKET\|xen\[:INDEX\]\n.*no bus at/);
  assert.equal(await runGuest(['--help'], io), 0);
});

test('the tour does all of it and sees a device leave and return', async () => {
  const events: Array<{ event: string; [field: string]: unknown }> = [];
  const replug = async (): Promise<void> => {
    await lane.call('detach', { bus: 'b', attachment: 'scratch' });
    await attachScratch();
  };
  let plugged: Promise<void> | undefined;
  const args = ['tour', '--bytes', String(content.length), '--sha256', sum(content)];
  const run = await vmsg(args, (text) => {
    const event = JSON.parse(text);
    events.push(event);
    if (event.event === 'waiting-for-hotplug') plugged = replug();
  });
  assert.equal(run.code, 0, run.err);
  await plugged;
  const names = events.map(({ event }) => event).filter((name) => name !== 'progress');
  assert.deepEqual(names, [
    'devices',
    'reading',
    'read',
    'wrote',
    'flushed',
    'verified',
    'waiting-for-hotplug',
    'removed',
    'added',
    'verified',
    'random',
    'statistics',
  ]);
  const read = events.find(({ event }) => event === 'read');
  assert.deepEqual([read?.sha256, read?.match, read?.tailZero], [sum(content), true, true]);
  const statistics = events.at(-1);
  assert(Number(statistics?.messages) > 0 && Number(statistics?.bytes) > content.length);
  const wrong = await vmsg(['tour', '--bytes', '100', '--sha256', sum(content.subarray(0, 100))]);
  assert.equal(wrong.code, 65, 'data follows the first 100 bytes');
});
