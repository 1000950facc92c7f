import { asDomid } from '../../../src/ports/hypervisor.ts';
import { xenbusState } from '../../../src/virtio-msg/xen-bus.ts';
import { HypervisorError } from '../../../src/xen/errors.ts';
import { SeededRandom } from '../../support/random.ts';
import { type Answer, grantAddress } from '../../support/xen-frontend.ts';
import { type HostileFrontend, turn, until } from './hostile-frontend.ts';

/** What an attack saw. */
export interface Sight {
  /** Answers to what it asked for, 0 or an errno each. */
  readonly errnos?: readonly number[];
  /** Sentences of the service. */
  readonly notes?: readonly string[];
}

interface World {
  readonly disk: number;
  readonly neighbour: number;
  /** A frontend that is closed after the attack. */
  readonly make: () => HostileFrontend;
  /** False when another attack is wanted. */
  readonly lasts: () => boolean;
  readonly say: (sight: Sight) => void;
}

export type Attack = (world: World) => Promise<void>;

const page = 4096;
const slot = 64;
const slots = page / slot - 2;
/** References of this domain that name nothing. */
export const nobody = 0x3ff0;
const nobodies = [nobody, 0x7fff, 0x00ff_ffff, 0xffff_ffff];
const zero = asDomid(0)!;
const ping = Uint8Array.of(2, 3, 0, 0, 1, 0, 12, 0, 1, 2, 3, 4);
const random = new SeededRandom(7);

const sized = (size: number): Uint8Array => {
  const frame = new Uint8Array(slot);
  frame.set(ping);
  frame[6] = size & 0xff;
  frame[7] = size >>> 8;
  return frame;
};

/** Puts frames into the ring, as soon as there is room, until the service has looked at all of them. */
async function postAll(frontend: HostileFrontend, frames: readonly Uint8Array[]): Promise<void> {
  for (const frame of frames) await until('room in the ring', () => frontend.raw.offer(frame));
  await frontend.alive();
}

/** Every slot holds a good message, and the index says something impossible. */
async function ringIndex({ make, say }: World): Promise<void> {
  for (const head of [slots, slots + 1, 0x7fff_ffff, 0xffff_ffff]) {
    const frontend = await make().connect();
    const { words } = frontend.raw;
    const ring = new Uint8Array(words.buffer, words.byteOffset, page);
    for (let i = 0; i < slots; i++) ring.set(ping, 2 * slot + i * slot);
    Atomics.store(words, 0, head);
    frontend.raw.ring();
    await until('the end of the connection', () => frontend.raw.alive.service === 0);
  }
  say({});
}

/** The index that says how far this side has read. */
async function readIndex({ make, say }: World): Promise<void> {
  for (const tail of [slots, 0xffff_ffff]) {
    const frontend = await make().connect();
    Atomics.store(frontend.raw.guestWords, 16, tail);
    frontend.raw.postRaw(ping);
    await until('the end of the connection', () => frontend.raw.alive.service === 0);
  }
  say({});
}

async function oversized({ make, say }: World): Promise<void> {
  const frontend = await make().connect();
  const frames = [65, 128, 1000, 0x7fff, 0xffff].map(sized);
  await postAll(frontend, frames);
  say({});
}

async function malformed({ make, say }: World): Promise<void> {
  const frontend = await make().connect();
  const lengths = [0, 1, 7, 8, 11, 13, 40, 64].map(sized);
  const garbage = Array.from({ length: 300 }, () => Uint8Array.from({ length: slot }, () => random.below(256)));
  await postAll(frontend, [...lengths, ...garbage]);
  say({});
}

const addRegion = async (frontend: HostileFrontend, area: number, reference: number, domain = 0): Promise<number> => {
  const body = { peer: 0, area, flags: 0, reference, domain, offset: 0n, length: BigInt(4 * page) };
  return (await frontend.ask('REGION_ADD', body)).errno!;
};

async function foreignReferences({ make, say, neighbour }: World): Promise<void> {
  const frontend = await make().connect();
  const errnos: number[] = [];
  for (const reference of nobodies) errnos.push(await addRegion(frontend, 1, reference));
  for (const reference of nobodies) {
    const pool = frontend.raw.makePool(4);
    new Uint32Array(pool.directory.bytes.buffer, pool.directory.bytes.byteOffset)[3] = reference;
    errnos.push(await addRegion(frontend, 1, pool.reference));
  }
  // References that the neighbour has granted to the service for its own devices.
  for (let reference = 8; reference < 24; reference++) await addRegion(frontend, reference, reference, neighbour);
  await frontend.alive();
  say({ errnos });
}

async function staleReferences({ make, say }: World): Promise<void> {
  const frontend = await make().connect();
  const errnos: number[] = [];
  for (const part of ['pages', 'directory'] as const) {
    const pool = frontend.raw.makePool(4);
    pool[part].close();
    errnos.push(await addRegion(frontend, 1, pool.reference));
  }
  say({ errnos });
}

/** Grants end while the service has mapped them, and right after it was told of them. */
async function endedReferences({ make, say }: World): Promise<void> {
  const frontend = await make().connect();
  const used = frontend.raw.makePool(4);
  const errnos = [await addRegion(frontend, 1, used.reference)];
  used.pages.close();
  used.directory.close();
  errnos.push((await frontend.ask('REGION_DEL', { peer: 0, area: 1, reserved: 0 })).errno!);
  for (let area = 2; area < 12; area++) {
    const pool = frontend.raw.makePool(4);
    const asked = addRegion(frontend, area, pool.reference);
    pool.pages.close();
    pool.directory.close();
    await asked;
  }
  await frontend.alive();
  say({ errnos });
}

async function queueAddresses({ make, say, disk }: World): Promise<void> {
  const frontend = await make().connect();
  await frontend.negotiate(disk);
  await frontend.startQueue(disk, grantAddress(nobody), 8);
  await frontend.alive();
  say({});
}

/** A queue of one request whose first buffer is at `address`; the others are good. */
async function submit(frontend: HostileFrontend, disk: number, area: number, address: bigint): Promise<void> {
  const pool = frontend.raw.makePool(4);
  const errno = await addRegion(frontend, area, pool.reference);
  if (errno !== 0) throw new Error(`REGION_ADD: ${errno}`);
  const base = BigInt(area) << 48n;
  const view = new DataView(pool.pages.bytes.buffer, pool.pages.bytes.byteOffset);
  const descriptor = (at: number, where: bigint, length: number, flags: number, next: number): void => {
    view.setBigUint64(at, where, true);
    view.setUint32(at + 8, length, true);
    view.setUint16(at + 12, flags, true);
    view.setUint16(at + 14, next, true);
  };
  await frontend.negotiate(disk);
  await frontend.startQueue(disk, base, 8);
  descriptor(0, base + BigInt(3 * page), 16, 1, 1);
  descriptor(16, address, 4096, 3, 2);
  descriptor(32, base + BigInt(3 * page + 16), 1, 2, 0);
  // The available ring: one chain, that of descriptor 0.
  view.setUint16(page + 2, 1, true);
  frontend.raw.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } } as never, disk);
  await frontend.alive();
}

async function descriptors({ make, say, disk }: World): Promise<void> {
  const frontend = await make().connect();
  await submit(frontend, disk, 1, grantAddress(nobody));
  say({});
}

/** The buffer of a request is granted, and no more as soon as the device was told. */
async function endedBuffers({ make, say, disk }: World): Promise<void> {
  const frontend = await make().connect();
  for (let area = 1; area <= 10; area++) {
    const buffer = frontend.raw.sharer.share(zero, 1);
    const submitted = submit(frontend, disk, area, grantAddress(buffer.references[0]!));
    buffer.close();
    await submitted;
  }
  say({});
}

async function handshake({ make, say }: World): Promise<void> {
  const answers: Answer[] = [
    { 'ring-to-service-refs': String(nobody) },
    { 'ring-to-guest-refs': '4294967295' },
    { 'ring-to-guest-refs': '1 '.repeat(500) },
    { 'event-channel': '131071' },
    { 'max-message-size': '-1' },
    { version: '99' },
  ];
  const notes: string[] = [];
  for (const answer of answers) {
    const frontend = make();
    await frontend.offered();
    frontend.raw.submit({ ...frontend.raw.answer(), ...answer });
    await until('a refusal', () => frontend.raw.backendState === xenbusState.closed);
    notes.push(frontend.raw.backend('error') ?? '');
    frontend.close();
  }
  say({ notes });
}

/** The guest says that it is dead, and goes on. */
async function aliveByte({ make, say }: World): Promise<void> {
  const frontend = await make().connect();
  frontend.raw.aliveGuest = 0;
  frontend.raw.ring();
  await until('the end of the connection', () => frontend.raw.alive.service === 0);
  say({});
}

/** Until the service has made a removed directory again there is nothing that this domain may write to. */
function unlessAbsent(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof HypervisorError && error.errno === 'EACCES')) throw error;
  }
}

/** Its own nodes, with everything that could be in them, as fast as xenstored takes it. */
async function nodes({ make, say, lasts }: World): Promise<void> {
  const { raw } = await make().connect();
  const good = raw.answer();
  const names = [...Object.keys(good), 'state', 'backend', 'backend-id'];
  const values = ['', '0', '1', '2', '3', '4', '5', '6', '-1', '4294967296', 'x'.repeat(1000), ...Object.values(good)];
  const remove = (): void => raw.xenstore.remove(raw.path);
  say({});
  while (lasts()) {
    const choice = random.below(20);
    unlessAbsent(() => {
      if (choice === 0) raw.submit(raw.answer());
      else if (choice === 1) remove();
      else raw.write(names[random.below(names.length)]!, values[random.below(values.length)]);
    });
    if (choice < 4) await turn();
  }
  // So that this domain finds its backend again, whose path it may have overwritten.
  unlessAbsent(remove);
}

async function events({ make, say, lasts }: World): Promise<void> {
  const { raw } = await make().connect();
  say({});
  while (lasts()) {
    for (let i = 0; i < 500; i++) raw.ring();
    await turn();
  }
}

/** As many messages as the ring takes. */
async function messages({ make, say, lasts }: World): Promise<void> {
  const frontend = await make().connect();
  say({});
  while (lasts()) {
    frontend.flood(ping);
    await turn();
  }
}

/** What a guest does that has work of its own. */
async function nothing({ make, say, lasts }: World): Promise<void> {
  await make().connect();
  say({});
  while (lasts()) {
    for (let i = 0; i < 100_000; i++) random.u32();
    await turn();
  }
}

/** By name: those of the first line end by themselves. */
export const attacks: Readonly<Record<string, Attack>> = {
  ...{ ringIndex, readIndex, oversized, malformed, foreignReferences, staleReferences, endedReferences },
  ...{ queueAddresses, descriptors, endedBuffers, handshake, aliveByte },
  ...{ nodes, events, messages, nothing },
};
