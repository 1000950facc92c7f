import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import type { Resource } from '../../bridge/commands.ts';
import { Scope } from '../../kit/scope.ts';
import { ApiClient } from '../cli/api-client.ts';
import { exitCode } from '../cli/exit-codes.ts';
import { type CliIo, resolvePath } from '../cli/io.ts';
import { type RunningService, startService } from '../compose.ts';
import { type Config, loadConfig } from '../config.ts';
import { surroundings } from '../serve.ts';
import { endSignal } from '../signals.ts';
import { ConsoleHost } from './console-host.ts';
import { GuestProcess } from './guest-process.ts';
import { type DemoImage, makeImage, makeScratch, sha256Of, userImage } from './images.ts';
import { humanBytes, Story } from './story.ts';
import { TourReport } from './tour-report.ts';

const help = `vmsg demo [--disk FILE] [--exit]

Starts the service and a guest process, and shows the guest use devices over virtio-msg.
  --disk FILE  the guest reads this file as its disk; it is never written
  --exit       end after the tour instead of keeping the service up
`;

const bus = 'demo';
const servedBus = 'served';
const scratchAttachment = `${bus}.scratch`;

/** `vmsg demo`. @returns exit code */
export async function runDemo(args: string[], io: CliIo): Promise<number> {
  const { values } = parseArgs({
    args,
    options: { disk: { type: 'string' }, exit: { type: 'boolean' }, help: { type: 'boolean' } },
  });
  if (values.help) {
    io.stdout.write(help);
    return exitCode.ok;
  }
  const disk = values.disk === undefined ? undefined : userImage(resolvePath(io, values.disk));
  const scope = new Scope();
  const directory = mkdtempSync(join(tmpdir(), 'vmsg-demo-'));
  scope.defer(() => rmSync(directory, { recursive: true, force: true }));
  const ended = endSignal();
  let service: RunningService | undefined;
  let outcome: number = exitCode.failed;
  try {
    const story = new Story(io, process.stdout.isTTY === true && io.stdout === process.stdout);
    story.chapter('The service starts');
    service = await startService(demoConfig(directory, io), pino({ level: 'warn' }, process.stderr));
    story.fact(`REST API on ${service.apiSocket}`);
    // Ctrl-C ends the tour as well.
    const tour = runTour(service, directory, disk, story, io, scope).then(() => 'done' as const);
    if ((await Promise.race([tour, ended])) === 'done') {
      if (values.exit !== true) {
        story.text(howToTryIt(service.apiSocket));
        await ended;
      }
      outcome = exitCode.ok;
    }
  } finally {
    await service?.stop();
    scope.close();
  }
  // Only now: also the end has to go well.
  if (outcome === exitCode.ok && values.exit === true) io.stdout.write('demo: ok\n');
  return outcome;
}

function demoConfig(directory: string, io: CliIo): Config {
  const config = loadConfig(undefined, surroundings(io));
  const runtimeDir = join(directory, 'run');
  const api = { ...config.api, socket: join(runtimeDir, 'api.sock') };
  return { ...config, stateDir: join(directory, 'state'), runtimeDir, api };
}

async function runTour(
  service: RunningService,
  directory: string,
  disk: DemoImage | undefined,
  story: Story,
  io: CliIo,
  scope: Scope,
): Promise<void> {
  const api = new ApiClient(service.apiSocket);

  story.chapter('Devices are defined and attached over REST');
  const image = disk ?? (await makeImage(directory, io.env.PATH));
  const scratch = makeScratch(directory);
  const consoleSocket = join(directory, 'console.sock');
  await defineDevices(api, image, scratch, consoleSocket, story);
  scope.own(await ConsoleHost.open(consoleSocket));
  const address = await addressOf(api, bus);

  story.chapter('Another guest process serves a device of its own');
  const server = new GuestProcess(['serve', '--bus', await addressOf(api, servedBus), '--entropy']);
  scope.defer(() => server.kill());
  await server.firstLine();
  await api.call('PUT', `/v1/attachments/${bus}.served`, { bus, backend: 'served' });
  story.fact(`process ${server.pid} serves entropy on the bus ${servedBus}; it is attached to the bus ${bus}`);

  story.chapter('A guest process connects and looks around');
  const hash = sha256Of(image.path);
  // Awaited later: until then a failure must not count as unhandled.
  hash.catch(() => {});
  const guest = new GuestProcess(['tour', '--bus', address, '--bytes', String(image.sizeBytes)]);
  scope.defer(() => guest.kill());
  story.fact(`process ${guest.pid} on ${address}; it shares memory with the service, and nothing else`);
  const report = new TourReport(story);
  await guest.run(async (event) => {
    report.tell(event);
    if (event.event === 'waiting-for-hotplug') await replug(api, story);
  });

  story.chapter('What happened');
  report.summary(await hash);
}

async function addressOf(api: ApiClient, id: string): Promise<string> {
  const { body } = await api.call('GET', `/v1/buses/${id}`);
  return (body as Resource<'buses'>).status.address;
}

async function defineDevices(
  api: ApiClient,
  image: DemoImage,
  scratch: DemoImage,
  consoleSocket: string,
  story: Story,
): Promise<void> {
  const objects: ReadonlyArray<readonly [string, object]> = [
    ['domains/guest', { description: 'the guest process of the demo' }],
    ['domains/server', { description: 'the guest process that serves a device' }],
    [`buses/${bus}`, { domain: 'guest', transport: 'loopback', role: 'driver' }],
    ['backends/disk', { type: 'blk', path: image.path, readOnly: true }],
    ['backends/scratch', { type: 'blk', path: scratch.path }],
    ['backends/rng', { type: 'rng' }],
    ['backends/console', { type: 'console', ports: [{ socket: consoleSocket }] }],
    [`buses/${servedBus}`, { domain: 'server', transport: 'loopback', role: 'device' }],
    ['backends/served', { type: 'guest', bus: servedBus, deviceNumber: 0 }],
    [`attachments/${bus}.disk`, { bus, backend: 'disk' }],
    [`attachments/${scratchAttachment}`, { bus, backend: 'scratch' }],
    [`attachments/${bus}.rng`, { bus, backend: 'rng' }],
    [`attachments/${bus}.console`, { bus, backend: 'console' }],
  ];
  for (const [path, spec] of objects) await api.call('PUT', `/v1/${path}`, spec);
  story.fact(`disk: ${image.what}, ${humanBytes(image.sizeBytes)}, read-only`);
  story.fact(`scratch: ${scratch.what}, ${humanBytes(scratch.sizeBytes)}, writable`);
  story.fact('rng: the entropy of the kernel');
  story.fact('console: a Unix socket, with this program at its other end');
}

/** Takes the scratch disk away while the guest runs, and gives it back. */
async function replug(api: ApiClient, story: Story): Promise<void> {
  story.chapter('The scratch disk is unplugged and plugged in again over REST');
  await api.call('DELETE', `/v1/attachments/${scratchAttachment}`);
  story.fact(`DELETE /v1/attachments/${scratchAttachment}`);
  const { body } = await api.call('PUT', `/v1/attachments/${scratchAttachment}`, { bus, backend: 'scratch' });
  const { deviceNumber } = (body as Resource<'attachments'>).status;
  story.fact(`PUT /v1/attachments/${scratchAttachment}: now device ${deviceNumber}`);
}

const howToTryIt = (socket: string): string => `
The service stays up. In another terminal:

  export VMSG_API=${socket}
  npm run vmsg -- ls
  npm run vmsg -- events
  npm run vmsg -- guest enumerate --bus ${join(socket, '..', 'bus', `${bus}.sock`)}
  curl --unix-socket ${socket} http://vmsg/v1/attachments

Ctrl-C ends it and removes everything it made.
`;
