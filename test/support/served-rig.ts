import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openBlk } from '../../src/bridge/backend/blk.ts';
import type { DeviceSnapshot, Lane, LaneBackendSpec, LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { BlkDriver, connect, serveDevices } from '../../src/guest/index.ts';
import { systemClock } from '../../src/kit/clock.ts';
import type { Backend } from '../../src/ports/backend.ts';
import { type LaneKind, makeLane } from './bridge-lane.ts';
import { until } from './guest-fixture.ts';

/** How the data of a served device may travel between two processes here. */
export type PathKind = 'relayed' | 'shadow';

export const guestBackend = (path: PathKind, bus: string, deviceNumber: number): LaneBackendSpec => ({
  type: 'guest',
  bus,
  deviceNumber,
  ...(path === 'shadow' ? { dataPath: 'shadow' as const } : {}),
});

export const imageBytes = 4 * 1024 * 1024 + 512;
const noHost = { failed: () => {}, configChanged: () => {} };

/** Lanes with buses of both roles in a directory; everything is counted before and after. */
class ServedRig {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  readonly image = join(this.directory, 'disk.img');
  readonly events: LaneEvent[] = [];
  readonly #lanes: Lane[] = [];

  constructor() {
    writeFileSync(this.image, randomBytes(imageBytes));
  }

  socket(bus: string): string {
    return join(this.directory, `${bus}.sock`);
  }

  async lane(kind: LaneKind, buses: Readonly<Record<string, 'driver' | 'device'>>): Promise<Lane> {
    const lane = makeLane(kind);
    await this.open(lane, buses);
    return lane;
  }

  /** Opens buses in a lane, which is shut down in the end. */
  async open(lane: Lane, buses: Readonly<Record<string, 'driver' | 'device'>>): Promise<void> {
    lane.onEvent((event) => this.events.push(event));
    this.#lanes.push(lane);
    for (const [bus, role] of Object.entries(buses)) {
      await lane.call('openBus', {
        bus,
        role,
        transport: 'loopback',
        domid: 1,
        socketPath: this.socket(bus),
        socketMode: 0o600,
        admittedUids: [process.getuid?.() ?? 0],
        maxMessageSizeBytes: 64,
        ringMaxBytes: 65536,
        recoveryDir: join(this.directory, `recovery-${bus}`),
      });
      await lane.call('listenBus', { bus });
    }
  }

  openDisk(path = this.image): Promise<Backend> {
    return openBlk({ path, readOnly: false, serial: 'served' }, noHost, systemClock);
  }

  async serveDisk(bus: string) {
    return await this.serve(bus, await this.openDisk());
  }

  /** Serves one device; resolves when the lane knows it. */
  async serve(bus: string, backend: Backend) {
    const server = await serveDevices({ path: this.socket(bus), reconnect: { totalMs: 10_000 } });
    const number = server.addDevice(backend);
    await this.sees(
      (event) => event.type === 'served-devices' && event.bus === bus && event.devices.includes(number),
      'the device',
    );
    return { server, number };
  }

  sees(condition: (event: LaneEvent) => boolean, what: string): Promise<void> {
    return until(() => this.events.some(condition), what);
  }

  /** The device of an attachment, as the lane shows it. */
  async device(lane: Lane, attachment: string): Promise<DeviceSnapshot | undefined> {
    const { buses } = await lane.call('inspect', {});
    return buses.flatMap(({ devices }) => devices).find((device) => device.attachment === attachment);
  }

  async end(): Promise<void> {
    for (const lane of this.#lanes.reverse()) {
      await lane.call('shutdown', {});
      lane.close();
    }
    rmSync(this.directory, { recursive: true });
  }
}

export async function withRig(run: (rig: ServedRig) => Promise<void>): Promise<void> {
  const rig = new ServedRig();
  try {
    await run(rig);
  } finally {
    await rig.end();
  }
}

/** Reads, writes and flushes as a guest of a bus. */
export async function useDisk(
  path: string,
  image: string,
  notify: 'messages' | 'descriptors' = 'messages',
): Promise<void> {
  const bus = await connect({ path });
  const [number = 0] = await bus.devices();
  const blk = await BlkDriver.open(bus, number, { notify });
  assert.equal(await blk.getId(), 'served');
  assert.equal(blk.capacityBytes, imageBytes);
  assert.deepEqual(Buffer.from(await blk.read(0, imageBytes)), readFileSync(image));
  const data = randomBytes(256 * 1024);
  await blk.write(8, data);
  await blk.flush();
  assert.deepEqual(readFileSync(image).subarray(4096, 4096 + data.length), data);
  await blk.close();
  bus.close();
}
