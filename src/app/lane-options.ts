import { randomFillSync } from 'node:crypto';
import { openBlk } from '../bridge/backend/blk.ts';
import { openConsole } from '../bridge/backend/console.ts';
import { threadIo } from '../bridge/backend/disk-io.ts';
import { ringIo } from '../bridge/backend/ring-io.ts';
import { openRng } from '../bridge/backend/rng.ts';
import { ShmBackend } from '../bridge/backend/shm.ts';
import { TemplateBackend } from '../bridge/backend/template.ts';
import { socketEndpoint } from '../bridge/backend/vhost-user/endpoint.ts';
import { Doors, ListeningEndpoint } from '../bridge/backend/vhost-user/listen.ts';
import { openVhostUser } from '../bridge/backend/vhost-user/open.ts';
import { SpawnedEndpoint } from '../bridge/backend/vhost-user/spawn/endpoint.ts';
import { Programs } from '../bridge/backend/vhost-user/spawn/programs.ts';
import { DeviceBus } from '../bridge/bus/device-bus.ts';
import { LoopbackTransport } from '../bridge/bus/loopback/transport.ts';
import { BusRuntime } from '../bridge/bus/runtime.ts';
import type { LaneCoreOptions } from '../bridge/lane/core.ts';
import type { LaneEvent, LaneSettings } from '../bridge/lane/protocol.ts';
import { RecoveryFiles } from '../bridge/recovery-files.ts';
import { Upstream } from '../bridge/remote/upstream.ts';
import { memfdBounce } from '../bridge/shadow/bounce-memory.ts';
import { loopbackFactory } from '../guest/loopback-transport.ts';
import { systemClock } from '../kit/clock.ts';
import type { Random } from '../kit/random.ts';
import { systemScheduler } from '../kit/scheduler.ts';
import type { Poller } from '../libc/poll.ts';
import { SharedSignal } from '../libc/signal-batch.ts';
import type { GuestIdentity } from '../ports/bus.ts';
import { dialectD5 } from '../virtio-msg/dialect.ts';
import { XenHypervisor } from '../xen/hypervisor.ts';
import { openDataPlane } from './lane-data-plane.ts';
import { type LaneHypervisor, LaneXen, recoveryDirOf } from './lane-xen.ts';

const systemRandom: Random = { fill: (target) => void randomFillSync(target) };
/** Number of virtio-msg D5 where sides agree on a dialect. */
const dialectNumber = 5;

/** Without a config: all in the thread of the lane. */
const defaultLaneSettings: LaneSettings = { dataPlaneWorkers: 0, dataPlaneSpinUs: 0, diskIo: 'io_uring' };

export interface LaneParts {
  /** The real one by default. */
  readonly hypervisor?: LaneHypervisor;
  readonly settings?: LaneSettings;
}

/** Composes a lane of the real parts: the kernel's clock, sockets, files and entropy. */
export function laneOptions(
  poller: Poller,
  emit: (event: LaneEvent) => void,
  { hypervisor = new XenHypervisor(poller), settings = defaultLaneSettings }: LaneParts = {},
): LaneCoreOptions {
  const xen = new LaneXen(hypervisor, systemClock);
  const common = { clock: systemClock, scheduler: systemScheduler };
  const doors = new Doors(poller, systemClock);
  const programs = new Programs();
  const io = settings.diskIo === 'threads' ? threadIo : ringIo({ poller, scheduler: systemScheduler });
  const signals = new SharedSignal();
  const dataPlane = openDataPlane(settings, poller, hypervisor);
  return {
    emit,
    ...common,
    xsm: () => xen.xsm(),
    close: () => {
      doors.close();
      signals.close();
      xen.close();
    },
    dataPlane,
    backends: {
      blk: (spec, host) => openBlk(spec, host, systemClock, io),
      console: (spec, host) => openConsole(spec, poller, systemClock, host),
      rng: (spec, host) => openRng(spec, systemRandom, host),
      shm: async ({ bytes }) => new ShmBackend(bytes),
      'vhost-user': (spec, host, { onReady, directWay }) => {
        const { socket, mode } = spec;
        const endpoint = mode === 'listen' ? new ListeningEndpoint(socket, doors, onReady) : socketEndpoint(socket);
        return openVhostUser(spec, endpoint, host, directWay, { ...common, poller, signals, dataPlane });
      },
      program: (spec, host, { directWay }) => {
        const { backend, program, mac } = spec;
        const log = (level: 'info' | 'warn', text: string) =>
          emit({ type: 'program-log', backend, program, level, text });
        const spawning = { clock: systemClock, log, searchPath: process.env.PATH ?? '' };
        const endpoint = new SpawnedEndpoint(spec, spawning, programs);
        const parts = { ...common, poller, signals, dataPlane, ...(mac === undefined ? {} : { mac }) };
        return openVhostUser(spec, endpoint, host, directWay, parts);
      },
      template: async ({ greeting }) => new TemplateBackend(greeting),
    },
    makeBus: (spec, emitFromBus) => {
      const { bus, domid, role, maxMessageSizeBytes, recoveryDir } = spec;
      const parts = { domid, ...common, random: systemRandom, emit: emitFromBus };
      const dialect = dialectD5;
      const { revision } = dialect.spec;
      const transport =
        spec.transport === 'xen'
          ? xen.transport(spec, { revision, dialect: dialectNumber })
          : new LoopbackTransport({ ...spec, revision, dialect: dialectNumber, poller, clock: systemClock });
      if (role === 'device') {
        const bounce = (peer: GuestIdentity, bytes: number) =>
          'domid' in peer ? xen.bounce(peer.domid, bytes) : memfdBounce(bytes);
        return new DeviceBus({ ...parts, bus, dialect, transport, bounce });
      }
      const store = new RecoveryFiles(spec.transport === 'xen' ? recoveryDirOf(spec) : recoveryDir);
      return new BusRuntime({ ...parts, bus, dialect, transport, store, maxMessageSize: maxMessageSizeBytes });
    },
    makeUpstream: (path) => new Upstream(loopbackFactory({ path, poller, clock: systemClock }), systemClock),
  };
}
