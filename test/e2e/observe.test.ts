import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Channel, MessageRecord, Share } from '../../src/bridge/commands.ts';
import { BlkDriver, connect, type GuestBus } from '../../src/guest/index.ts';
import { parseMetrics, sampleOf } from '../api/prometheus.ts';
import { type CommandResult, runVmsg } from '../support/run-command.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

/** A port that nobody has now. */
async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

const port = await freePort();
const home = new ServiceHome(
  {
    domains: { vm1: {} },
    buses: { b1: { domain: 'vm1', transport: 'loopback', role: 'driver' } },
    backends: { disk: { type: 'blk', path: 'disk.img' } },
    attachments: { a1: { bus: 'b1', backend: 'disk' } },
  },
  { api: { tcp: { port, tokenFile: 'token' } } },
);
const tokenFile = join(home.directory, 'token');
const url = `http://127.0.0.1:${port}`;
const sectors = 8;
const transferBytes = 512 * sectors;
let service: ServiceProcess;

before(async () => {
  writeFileSync(join(home.directory, 'disk.img'), Buffer.alloc(64 * 1024, 7));
  service = await home.start();
});
after(async () => {
  assert.equal(await service.stop(), 0);
  home.remove();
});

const vmsg = (...args: string[]): Promise<CommandResult> => runVmsg(args, { VMSG_API: home.apiSocket });

async function succeeds(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vmsg(...args);
  assert.equal(code, 0, stderr);
  return stdout;
}

const readJson = async <T>(...args: string[]): Promise<T> => JSON.parse(await succeeds(...args, '--json')) as T;

/** A guest that has read once and is still there. */
async function reader(reads: number): Promise<GuestBus> {
  const guest = await connect({ path: home.busPath('b1') });
  assert.deepEqual(await guest.devices(), [0]);
  const blk = await BlkDriver.open(guest, 0);
  for (let n = 0; n < reads; n += 1) await blk.read(0, transferBytes);
  return guest;
}

test('channels, records and shares of a guest are shown while it is there', async () => {
  assert.match(await succeeds('channels'), /CHANNEL +DOMAIN.*\nb1 +vm1 +listening +0x0 +- +- +0 +0 +- +0 +0\n$/);
  assert.deepEqual(await readJson('shares'), []);
  assert.deepEqual(await readJson('channels', 'b1', '--records'), []);
  const guest = await reader(3);

  const channel = await readJson<Channel>('channels', 'b1');
  assert.deepEqual([channel.id, channel.state, channel.dialect], ['b1', 'connected', 'D5']);
  assert.ok(channel.peer !== null && 'pid' in channel.peer && channel.peer.pid === process.pid);
  assert.ok(channel.counters.messagesIn > 5 && channel.counters.messagesOut > 5);
  assert.deepEqual(await readJson('channels'), [channel]);
  assert.match(await succeeds('channels', 'b1'), new RegExp(`b1 +vm1 +connected +0x[0-9a-f]+ +pid ${process.pid} +D5`));

  const records = await readJson<MessageRecord[]>('channels', 'b1', '--records');
  const seen = new Set(records.map(({ direction, kind, message }) => `${direction} ${kind} ${message}`));
  for (const one of [
    'in request GET_DEVICES',
    'out response GET_DEVICES',
    'in request GET_DEVICE_INFO',
    'out response SET_VQUEUE',
  ]) {
    assert.ok(seen.has(one), `${one} in ${[...seen].join(', ')}`);
  }
  assert.equal(records.length, channel.counters.messagesIn + channel.counters.messagesOut);
  for (const [i, { sequence, ageMs, message, sizeBytes }] of records.entries()) {
    assert.equal(sequence, i);
    assert.ok(ageMs >= 0 && ageMs <= (records[i - 1]?.ageMs ?? Infinity), 'the age falls');
    assert.ok(message !== null && sizeBytes >= 8);
  }
  const table = await succeeds('channels', 'b1', '--records');
  assert.equal(table.trimEnd().split('\n').length, records.length + 1);
  assert.match(table, /\n\d+ +\d+\.\d{3} +in +request +GET_DEVICE_INFO +0 +\d+ +\d+\n/);

  const shares = await readJson<Share[]>('shares');
  assert.ok(shares.length > 0);
  for (const { id, bus, domain, area, bytes, state } of shares) {
    assert.deepEqual([id, bus, domain, state], [`b1.${area}`, 'b1', 'vm1', 'active']);
    assert.ok(bytes > 0 && bytes % 4096 === 0);
  }
  assert.match(await succeeds('shares'), /SHARE.*\nb1\.\d+ +b1 +vm1 +\d+ +read-write +\d+ +active\n/);

  guest.close();
  const gone = async () => ((await readJson<Share[]>('shares')).length === 0 ? true : undefined);
  await eventually(gone, 'the regions go with the guest');
  const last = await readJson<MessageRecord[]>('channels', 'b1', '--records');
  assert.ok(last.length >= records.length, 'the records of the last guest stay');
});

test('counters go on when guests come and go', async () => {
  const scrape = async () => parseMetrics(await service.api.text('/metrics'));
  const onBus = { bus: 'b1', domain: 'vm1' };
  const onDevice = { bus: 'b1', attachment: 'a1', device_type: 'blk' };
  const totals = (families: Awaited<ReturnType<typeof scrape>>) =>
    new Map(
      [...families]
        .filter(([, { type }]) => type === 'counter')
        .flatMap(([name, { samples }]) =>
          samples.map(({ labels, value }) => [`${name} ${JSON.stringify(labels)}`, value] as const),
        ),
    );
  let previous = await scrape();
  const value = (name: string, labels: Record<string, string>) => sampleOf(previous, name, labels) ?? Number.NaN;
  for (let n = 0; n < 3; n += 1) {
    const requests = value('vmsg_attachment_requests_total', onDevice);
    const bytes = value('vmsg_attachment_bytes_total', onDevice);
    const received = value('vmsg_bus_messages_received_total', onBus);
    const guest = await reader(5);
    const during = await scrape();
    assert.equal(sampleOf(during, 'vmsg_guests_connected'), 1);
    assert.equal(sampleOf(during, 'vmsg_attachment_requests_total', onDevice), requests + 5);
    assert.ok((sampleOf(during, 'vmsg_attachment_bytes_total', onDevice) ?? 0) >= bytes + 5 * transferBytes);
    assert.ok((sampleOf(during, 'vmsg_bus_messages_received_total', onBus) ?? 0) > received);
    assert.ok((sampleOf(during, 'vmsg_bus_region_bytes', onBus) ?? 0) > 0);
    guest.close();
    const left = async () => {
      const now = await scrape();
      return sampleOf(now, 'vmsg_guests_connected') === 0 ? now : undefined;
    };
    const next = await eventually(left, 'the guest has left');
    for (const [key, before] of totals(previous)) {
      const now = totals(next).get(key);
      assert.ok(now !== undefined && now >= before, `${key}: ${before}, then ${now}`);
    }
    previous = next;
  }
});

test('metrics are a table for people', async () => {
  const text = await succeeds('metrics');
  assert.match(text, /^BUS +DOMAIN +STATE +IN +OUT +MALFORMED.*\nb1 +vm1 +listening +\d+ +\d+ +0 +/);
  assert.match(text, /\nATTACHMENT +BUS +TYPE +STATE +REQUESTS.*\na1 +b1 +blk +active +\d+ +\d+ +0\n/);
  assert.match(text, /\nguests connected +0\n/);
  assert.match(text, /\nopen file descriptors +[1-9]\d*\n/);
  const samples = await readJson<{ name: string; labels: object; value: number }[]>('metrics');
  const state = samples.find(({ name }) => name === 'vmsg_attachment_state');
  assert.deepEqual(state?.labels, { bus: 'b1', attachment: 'a1', device_type: 'blk', state: 'active' });
  assert.ok(samples.some(({ name, value }) => name === 'process_resident_memory_bytes' && value > 1e6));
});

test('the service makes a token, and the command uses it over TCP', async () => {
  assert.equal(statSync(tokenFile).mode & 0o777, 0o600);
  const overTcp = (...args: string[]) => runVmsg([...args, '--api', url, '--token-file', tokenFile]);
  const listed = await overTcp('ls');
  assert.equal(listed.code, 0, listed.stderr);
  assert.equal(listed.stdout, await succeeds('ls'));
  assert.equal((await overTcp('domain', 'add', 'vm2')).code, 0);
  assert.equal((await overTcp('domain', 'rm', 'vm2')).code, 0);
  const byEnvironment = await runVmsg(['shares', '--json'], { VMSG_API: `${url}/`, VMSG_TOKEN_FILE: tokenFile });
  assert.deepEqual([byEnvironment.code, byEnvironment.stdout], [0, '[]\n']);
  const answer = await fetch(`${url}/healthz`, { headers: { authorization: `Bearer ${readToken()}` } });
  assert.equal(answer.status, 200);
  assert.equal((await fetch(`${url}/healthz`)).status, 401);
});

const readToken = (): string => readFileSync(tokenFile, 'utf8').trim();

test('wrong use is one sentence and the exit code for it', async () => {
  const other = join(home.directory, 'other-token');
  writeFileSync(other, 'not-the-token-of-this-service\n');
  const empty = join(home.directory, 'empty-token');
  writeFileSync(empty, '\n');
  const cases: [number, RegExp, ...string[]][] = [
    [64, /--token-file, or \$VMSG_TOKEN_FILE/, 'ls', '--api', url],
    [64, /--token-file takes/, 'ls', '--api', url, '--token-file'],
    [64, /or http:\/\/127\.0\.0\.1:PORT, not/, 'ls', '--api', 'http://192.0.2.1:80', '--token-file', tokenFile],
    [64, /or http:\/\/127\.0\.0\.1:PORT, not/, 'ls', '--api', `https://127.0.0.1:${port}`, '--token-file', tokenFile],
    [64, /or http:\/\/127\.0\.0\.1:PORT, not/, 'ls', '--api', `${url}/v1`, '--token-file', tokenFile],
    [78, /ENOENT/, 'ls', '--api', url, '--token-file', join(home.directory, 'nowhere')],
    [78, /holds no token/, 'ls', '--api', url, '--token-file', empty],
    [1, /the token is wrong \[unauthorized\]/, 'ls', '--api', url, '--token-file', other],
    [1, /the token is wrong \[unauthorized\]/, 'events', '--api', url, '--token-file', other],
    [1, /bus "nobody" does not exist/, 'channels', 'nobody'],
    [1, /bus "nobody" does not exist/, 'channels', 'nobody', '--records'],
    [64, /--records needs the id of a bus/, 'channels', '--records'],
    [64, /unexpected argument 'y'/, 'channels', 'x', 'y'],
    [64, /Unexpected argument|positional/, 'shares', 'x'],
    [64, /Unexpected argument|positional/, 'metrics', 'x'],
  ];
  const results = await Promise.all(cases.map(([, , ...args]) => vmsg(...args)));
  for (const [i, [code, sentence, ...args]] of cases.entries()) {
    const result = results[i]!;
    assert.equal(result.code, code, `${args.join(' ')}: ${result.stderr}`);
    assert.match(result.stderr, sentence);
    assert.equal(result.stderr.trimEnd().split('\n').length, 1, result.stderr);
    assert.equal(result.stdout, '');
  }
});

for (const [what, tcp, sentence] of [
  ['an address beyond loopback', { host: '0.0.0.0', port }, /\/api\/tcp\/host must be .* needs TLS/],
  ['a token file that others can read', { port: port + 1, tokenFile: 'open' }, /set its mode to 0600/],
] as const) {
  test(`serve refuses ${what}`, async () => {
    const file = join(home.directory, 'wrong.json');
    writeFileSync(join(home.directory, 'open'), 'a-token-that-is-long-enough', { mode: 0o644 });
    writeFileSync(
      file,
      JSON.stringify({ stateDir: 'state2', runtimeDir: 'run2', log: { level: 'warn' }, api: { tcp } }),
    );
    const { code, stderr } = await vmsg('serve', '--config', file);
    assert.equal(code, 78, stderr);
    assert.match(stderr, sentence);
    assert.equal(stderr.trimEnd().split('\n').length, 1, stderr);
  });
}
