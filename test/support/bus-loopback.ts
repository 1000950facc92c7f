import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LoopbackTransport } from '../../src/bridge/bus/loopback/transport.ts';
import type { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import { loopbackFactory } from '../../src/guest/index.ts';
import { LoopbackAccess } from '../../src/guest/loopback-access.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import {
  type BusBench,
  type BusBenchOptions,
  type BusGuest,
  type BusImplementation,
  openGuest,
  released,
} from './bus-bench.ts';
import { type BusEnd, BusService, type Life } from './bus-service.ts';
import { settledCensus } from './settled-census.ts';

const domid = 1;
const memoryBytes = 1024 * 1024;
const fewSlots = 8;

/** The bus of ordinary processes: a real socket, real memfds and doorbells, both sides in this process. */
export const loopbackBus: BusImplementation = {
  name: 'loopback',
  memories: ['regions'],
  notifications: ['messages', 'own'],
  secondGuest: 'refused',
  // The socket closes either way: there is no other word for a leave.
  endings: { closed: /the guest closed/, killed: /the guest closed/ },
  make: async (options) => makeBench(options),
};

async function makeBench({
  maxMessageSizeBytes = limits.messageSizeMaxBytes,
}: BusBenchOptions = {}): Promise<BusBench> {
  const before = await settledCensus();
  const held = () => JSON.stringify(census());
  const directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  const path = join(directory, 'bus');
  const open = (life: Life) => openEnd(life, path, maxMessageSizeBytes);
  const service = new BusService({ domid, maxMessageSizeBytes, open });
  const guests: BusGuest[] = [];
  await service.start();
  return {
    service,
    connect: async ({ maxMessageSize, reconnect = false, fewSlots: few = false, clock } = {}) => {
      const common = { ...(clock === undefined ? {} : { clock }) };
      const connection = { ...common, path, ...(maxMessageSize === undefined ? {} : { maxMessageSize }) };
      const factory = loopbackFactory({ ...connection, ...(few ? { ringSlots: fewSlots } : {}) });
      const opened = await openGuest(new LoopbackAccess(factory), { ...common, memoryBytes, reconnect });
      const guest = { ...opened, kill: () => opened.bus.close() };
      guests.push(guest);
      return guest;
    },
    held,
    async close() {
      for (const { bus } of guests) bus.close();
      await service.close();
      rmSync(directory, { recursive: true });
      await released(held, before);
    },
  };
}

function openEnd(life: Life, socketPath: string, maxMessageSizeBytes: number): BusEnd {
  const poller = new LoopPoller();
  const transport = new LoopbackTransport({
    socketPath,
    socketMode: 0o600,
    admittedUids: [process.getuid!()],
    domid,
    role: 'driver',
    maxMessageSizeBytes,
    ringMaxBytes: limits.ringMaxBytes,
    revision: dialectD5.spec.revision,
    dialect: 5,
    poller,
    clock: life.clock,
  });
  return {
    transport,
    kill(runtime: BusRuntime) {
      // The sockets close first, so that nothing of what follows reaches the guest; then the memory goes.
      void runtime.close(true);
      life.abandonDisk();
      poller.close();
    },
    close: () => poller.close(),
  };
}
