import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import type { Resource } from '../../../src/bridge/commands.ts';
import { contentOf } from '../../support/versioned-load.ts';
import type { BusOrder } from '../guests/bus.ts';
import type { DataLine, DataOrder } from '../guests/data.ts';
import type { FollowerLine } from '../guests/follower.ts';
import type { XenBench } from './bench.ts';
import { seededContent } from './content.ts';
import type { Domain, DomainCommand } from './domains.ts';
import { eventually } from './eventually.ts';
import { GuestProgram } from './program.ts';

/** In the memory of the domU that serves it. */
const image = '/tmp/served.img';
/** Devices that a domU serves: what its backends and attachments here are called, and the device numbers there. */
const devices = { disk: 0, entropy: 1 } as const;

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Runs `vmsg guest serve` in a domU. @param before shell commands. @returns when it serves all of its devices */
export async function serve(domain: Domain, args: string, last: number, before = ':'): Promise<DomainCommand> {
  const command = await domain.start(`${before} && exec vmsg guest serve ${args} --reconnect 60`);
  await new Promise<void>((resolve, reject) => {
    command.onLine((line) => {
      if (line === `serving device ${last}`) resolve();
    });
    const fail = (how: string): void =>
      reject(new Error([`${domain.name} serves nothing: ${how}`, ...command.lines].join('\n')));
    command.ended.then(
      (code) => fail(`status ${code}`),
      (error: Error) => fail(error.message),
    );
  });
  return command;
}

const serveImage = (domain: Domain, make: string): Promise<DomainCommand> =>
  serve(domain, `--bus xen --disk-image ${image} --entropy`, devices.entropy, `rm -f ${image}; ${make}`);

const readBytes = 8 * 1024 * 1024;
const writtenBytes = 4 * 1024 * 1024;

/** The image holds bytes that nobody knows, for `moveData`. */
export const serveRandom = (domain: Domain): Promise<DomainCommand> =>
  serveImage(domain, `head -c ${readBytes} /dev/urandom >${image}`);

/** The image holds zeroes, as the program `follower` needs it. */
export const serveEmpty = (domain: Domain): Promise<DomainCommand> => serveImage(domain, `truncate -s 1M ${image}`);

/** Writes zeroes over the beginning of the image, for the program `follower`. Nobody uses the disk now. */
export async function clearImage(domain: Domain): Promise<void> {
  const { code, output } = await domain.run(`dd if=/dev/zero of=${image} bs=1M count=1 conv=notrunc`);
  assert.equal(code, 0, output);
}

/** SHA-256 of the first bytes of the image. */
async function imageHash(domain: Domain, bytes: number): Promise<string> {
  return (await domain.run(`head -c ${bytes} ${image} | sha256sum`)).output.split(' ')[0]!;
}

/** Names the devices that a domU serves, for another one. */
export async function attachServed(bench: XenBench, user: string, server: string): Promise<void> {
  for (const [name, deviceNumber] of Object.entries(devices)) {
    const backend = `${server}-${name}`;
    await bench.put('backends', backend, { type: 'guest', bus: server, deviceNumber });
    await bench.put('attachments', backend, { bus: user, backend });
  }
}

/** Waits for what `attachServed` has named. @returns the attachment of the disk */
export async function inUse(bench: XenBench, server: string): Promise<Resource<'attachments'>> {
  const [disk] = await Promise.all(
    Object.keys(devices).map((name) =>
      eventually(async () => {
        const found = await bench.service.attachment(`${server}-${name}`);
        return found.status.state === 'active' ? found : undefined;
      }, `${name} of ${server} is active`),
    ),
  );
  return disk!;
}

/**
 * The domain `user` reads the image that `server` serves, and writes over its beginning: both see the same bytes.
 * @param memory how the user shares its memory. @returns how fast, in words
 */
export async function moveData(bench: XenBench, device: number, memory: BusOrder): Promise<string> {
  const server = bench.domain('server');
  const there = await imageHash(server, readBytes);
  const order: DataOrder = {
    ...memory,
    read: { device, bytes: readBytes },
    write: { device, bytes: writtenBytes, seed: 1 },
  };
  const data = await GuestProgram.start<DataLine>(bench.domain('user'), 'data', order);
  const result = await data.count('done', 1);
  assert.equal(result.sha256, there);
  await data.stop();
  assert.equal(await imageHash(server, writtenBytes), sha256(seededContent(1, writtenBytes)));
  return `read ${result.readMBPerSecond} MB/s, write ${result.writeMBPerSecond} MB/s`;
}

/** Both devices are used, from now on. */
export async function goesOn(follower: GuestProgram<FollowerLine>): Promise<void> {
  const before = await follower.next('progress');
  await follower.next(
    'progress',
    ({ device, acknowledged, random }) =>
      random > before.random && acknowledged >= (device === before.device ? before.acknowledged : 0) + 20,
  );
}

/** Both devices leave; their requests fail. @returns the codes */
export async function leaves(follower: GuestProgram<FollowerLine>, how: () => Promise<void>): Promise<string[]> {
  const left = ['blk', 'rng'].map((kind) => follower.next('left', (line) => line.kind === kind));
  await how();
  return (await Promise.all(left)).map(({ code }) => code);
}

/** Whether an image holds what the last acknowledged writes have left. */
export async function hasVersions(domain: Domain, versions: readonly number[]): Promise<boolean> {
  const expected = Buffer.concat(versions.map((version, block) => contentOf(block, version)));
  return sha256(expected) === (await imageHash(domain, expected.length));
}
