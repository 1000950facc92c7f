import { XenAccess, type XenOptions } from '../../src/guest/xen-access.ts';
import { limits } from '../../src/kit/limits.ts';
import {
  type BusBench,
  type BusBenchOptions,
  type BusGuest,
  type BusImplementation,
  openGuest,
  released,
} from './bus-bench.ts';
import { XenBusWorld, type XenMachine } from './bus-xen-world.ts';

const memoryBytes = 1024 * 1024;
/** A page has room for 15 messages of the largest size. */
const fewPages = 1;

const memories: Readonly<Record<string, XenOptions>> = {
  pool: { memory: 'pool' },
  grants: { memory: 'grants', persistent: false },
  'grants that stay mapped': { memory: 'grants', persistent: true },
};

/** The bus of Xen domains, on a machine that is made for each test. */
export function xenBus(name: string, makeMachine: () => XenMachine): BusImplementation {
  return {
    name,
    memories: Object.keys(memories),
    notifications: ['messages', 'own'],
    secondGuest: 'waits',
    endings: { closed: /the guest closed the bus/, killed: /the guest ended without closing the bus/ },
    make: async (options) => makeBench(makeMachine(), options),
  };
}

async function makeBench(machine: XenMachine, options: BusBenchOptions = {}): Promise<BusBench> {
  const { maxMessageSizeBytes = limits.messageSizeMaxBytes } = options;
  const world = new XenBusWorld(machine, { maxMessageSizeBytes });
  const { service } = world;
  const guests: BusGuest[] = [];
  await service.start();
  const held = () => machine.held();
  const empty = held();
  return {
    service,
    connect: async ({ memory = 'pool', maxMessageSize, reconnect = false, fewSlots = false, clock } = {}) => {
      const process = world.process();
      const common = { ...(clock === undefined ? {} : { clock }) };
      const way = memories[memory]!;
      const access = new XenAccess({
        ...common,
        ...way,
        hypervisor: process,
        role: 'driver',
        index: machine.index,
        ...(maxMessageSize === undefined ? {} : { maxMessageSize }),
        ...(fewSlots ? { ringPages: fewPages } : {}),
      });
      const regions = way.memory === 'pool' ? { memoryBytes } : {};
      const opened = await openGuest(access, { ...common, ...regions, reconnect });
      const kill = (): void => {
        process.kill();
        opened.bus.close();
      };
      const guest = { ...opened, kill };
      guests.push(guest);
      return guest;
    },
    held,
    async close() {
      for (const { bus } of guests) bus.close();
      try {
        await released(held, empty);
      } finally {
        await service.close();
        machine.close();
      }
    },
  };
}
