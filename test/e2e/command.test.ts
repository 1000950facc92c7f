import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Resource } from '../../src/bridge/commands.ts';
import { type CommandResult, runVmsg } from '../support/run-command.ts';
import { mainProgram, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const home = new ServiceHome({ domains: {}, buses: {}, backends: {}, attachments: {} });
const image = join(home.directory, 'disk.img');
const scratch = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
let service: ServiceProcess;

before(async () => {
  writeFileSync(image, Buffer.alloc(1024 * 1024, 7));
  service = await home.start();
});
after(async () => {
  assert.equal(await service.stop(), 0);
  home.remove();
  rmSync(scratch, { recursive: true });
});

const vmsg = (...args: string[]): Promise<CommandResult> => runVmsg(args, { VMSG_API: home.apiSocket });

async function succeeds(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vmsg(...args);
  assert.equal(code, 0, stderr);
  return stdout;
}

/** One sentence on stderr, nothing on stdout. */
async function fails(expected: number, sentence: RegExp, ...args: string[]): Promise<void> {
  const { code, stdout, stderr } = await vmsg(...args);
  assert.equal(code, expected, stderr);
  assert.match(stderr, sentence);
  assert.equal(stderr.trimEnd().split('\n').length, 1, stderr);
  assert.equal(stdout, '');
}

test('a bus with a disk is made, used by a guest, shown and taken apart', async () => {
  assert.match(await succeeds('domain', 'add', 'vm1', '--description', 'first'), /domains\/vm1 created/);
  await succeeds('bus', 'add', 'b1', '--domain', 'vm1');
  await succeeds('backend', 'add', 'd1', '--type', 'blk', '--path', image, '--serial', 'S1');
  await succeeds('backend', 'add', 'r1', '--type', 'rng');
  assert.match(await succeeds('attach', 'b1', 'd1'), /attachments\/b1\.d1 created, device number 0/);
  assert.match(await succeeds('attach', 'b1', 'r1', '--number', '7', '--id', 'entropy'), /device number 7/);

  const listing = await succeeds('ls');
  assert.match(listing, /b1 +vm1 +driver +listening/);
  assert.match(listing, /b1\.d1 +b1 +0 +blk +d1 +active/);
  const objects = JSON.parse(await succeeds('ls', '--json')) as { attachments: Resource<'attachments'>[] };
  assert.deepEqual(
    objects.attachments.map(({ id }) => id),
    ['b1.d1', 'entropy'],
  );

  const bus = home.busPath('b1');
  const devices = JSON.parse(await succeeds('guest', 'enumerate', '--bus', bus, '--json')) as { number: number }[];
  assert.deepEqual(
    devices.map(({ number }) => number),
    [0, 7],
  );
  await succeeds('guest', 'blk', '0', 'verify', '--bus', bus, '--against', image);

  assert.match(await succeeds('detach', 'b1.d1'), /deleted/);
  await fails(1, /not exist|No such object/, 'detach', 'b1.d1');
  await fails(1, /in-use/, 'bus', 'rm', 'b1');
  for (const [kind, id] of [
    ['attachment', 'entropy'],
    ['bus', 'b1'],
    ['domain', 'vm1'],
    ['backend', 'd1'],
    ['backend', 'r1'],
  ] as const) {
    await succeeds(kind, 'rm', id);
  }
});

test('a Xen domain is named, and all that belongs to it waits for it', async () => {
  await succeeds('domain', 'add', 'x1', '--xen-name', 'vmsg-test-nobody');
  await succeeds('bus', 'add', 'x1', '--domain', 'x1');
  await succeeds('bus', 'add', 'x1-b', '--domain', 'x1', '--index', '1', '--pool-max', '1048576', '--role', 'device');
  await succeeds('backend', 'add', 'xr', '--type', 'rng');
  await succeeds('attach', 'x1', 'xr');
  const { spec, status } = JSON.parse(await succeeds('bus', 'show', 'x1-b')) as Resource<'buses'>;
  assert.deepEqual(spec, { domain: 'x1', transport: 'xen', role: 'device', index: 1, poolMaxBytes: 1048576 });
  assert.equal(status.state, 'pending');
  assert.match(await succeeds('domain', 'ls'), /x1 +- +absent.* +vmsg-test-nobody +x1 x1-b/);
  const listing = await succeeds('ls');
  assert.match(listing, /x1 +x1 +driver +pending \(domain x1 is not running.*\) +0x0 +- +xen:\?\/device\/vmsg\/0/);
  assert.match(listing, /x1\.xr +x1 +- +rng +xr +pending \(bus "x1" is not open: domain x1 is not running/);
  await fails(1, /bus-index-taken/, 'bus', 'add', 'x1-c', '--domain', 'x1', '--index', '1');
  await fails(1, /needs transport xen/, 'bus', 'add', 'x1-c', '--domain', 'x1', '--transport', 'loopback');
  for (const [kind, id] of [
    ['attachment', 'x1.xr'],
    ['bus', 'x1'],
    ['bus', 'x1-b'],
    ['domain', 'x1'],
    ['backend', 'xr'],
  ] as const) {
    await succeeds(kind, 'rm', id);
  }
});

test('the doctor finds the service that runs', async () => {
  const { code, stdout, stderr } = await vmsg('doctor', '--role', 'service', '--json');
  assert.ok(code === 0 || code === 1, stderr);
  const { role, findings } = JSON.parse(stdout) as { role: string; findings: { check: string; state: string }[] };
  assert.equal(role, 'service');
  assert.equal(findings.find(({ check }) => check === 'api')?.state, 'fine');
});

test('wrong use is one sentence and the exit code for it', async () => {
  await fails(64, /no command 'frobnicate'/, 'frobnicate');
  await fails(64, /there are ls, show, add and rm/, 'bus', 'explode', 'x');
  await fails(64, /needs an id/, 'bus', 'show');
  await fails(64, /--domain is needed/, 'bus', 'add', 'x');
  await fails(64, /whole number/, 'attach', 'a', 'b', '--number', 'many');
  await fails(64, /Unknown option/, 'ls', '--frobnicate');
  await fails(64, /--api takes/, 'ls', '--api');
  await fails(1, /missing-reference/, 'bus', 'add', 'x', '--domain', 'nowhere');
  await fails(1, /invalid-request/, 'domain', 'add', 'NOT AN ID');
  await fails(69, /no service answers/, 'ls', '--api', join(scratch, 'nobody'));
});

test('the event stream tells what happens', async () => {
  const child = spawn(process.execPath, [mainProgram, 'events', '--json', '--api', home.apiSocket], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = (async () => {
    let text = '';
    for await (const chunk of child.stdout) {
      text += String(chunk);
      if (text.includes('"object-deleted"')) break;
    }
    return text.trimEnd().split('\n');
  })();
  // The stream is open when its first event arrives: make some until then.
  for (let n = 0; ; n++) {
    await succeeds('domain', 'add', `e${n}`);
    await succeeds('domain', 'rm', `e${n}`);
    const done = await Promise.race([lines.then(() => true), new Promise((r) => setTimeout(r, 50, false))]);
    if (done === true) break;
  }
  const events = (await lines).map((line) => JSON.parse(line) as { type: string; kind: string; object: string });
  assert.ok(events.some(({ type, kind }) => type === 'object-deleted' && kind === 'domains'));
  child.kill();
  await once(child, 'exit');
});

for (const [name, content, pointer] of [
  ['a field that does not exist', { api: { sock: 'x' } }, /\/api\/sock/],
  ['a wrong type', { log: { level: 5 } }, /\/log\/level/],
  ['a wrong object', { backends: { d: { type: 'blk' } } }, /\/backends\/d/],
  ['something else than JSON', 'not json', /is not JSON/],
] as const) {
  test(`serve refuses a config with ${name}: exit 78, and the place is named`, async () => {
    const path = join(scratch, 'config.json');
    writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
    const { code, stderr } = await vmsg('serve', '--config', path);
    assert.equal(code, 78, stderr);
    assert.match(stderr, pointer);
    assert.equal(stderr.trimEnd().split('\n').length, 1, stderr);
  });
}

test('a second service in the same directories is refused', async () => {
  const { code, stderr } = await vmsg('serve', '--config', join(home.directory, 'vmsg.json'));
  assert.equal(code, 1);
  assert.match(stderr, /another service uses/);
});

test('help and version', async () => {
  assert.match(await succeeds('--help'), /vmsg attach BUS BACKEND/);
  assert.match(await succeeds('serve', '--help'), /runtimeDir/);
  assert.match(await succeeds('guest', '--help'), /enumerate/);
  assert.match(await succeeds('--version'), /^vmsg \d+\.\d+\.\d+\n$/);
});
