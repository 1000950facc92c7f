import { randomFillSync } from 'node:crypto';
import { openBlk } from '../bridge/backend/blk.ts';
import { openRng } from '../bridge/backend/rng.ts';
import { LoopbackTransport } from '../bridge/bus/loopback/transport.ts';
import { BusRuntime } from '../bridge/bus/runtime.ts';
import type { LaneCoreOptions } from '../bridge/lane/core.ts';
import type { LaneEvent } from '../bridge/lane/protocol.ts';
import { RecoveryFiles } from '../bridge/recovery-files.ts';
import { systemClock } from '../kit/clock.ts';
import type { Random } from '../kit/random.ts';
import { systemScheduler } from '../kit/scheduler.ts';
import type { Poller } from '../libc/poll.ts';
import { dialectD5 } from '../virtio-msg/dialect.ts';

const systemRandom: Random = { fill: (target) => void randomFillSync(target) };
const loopbackDialect = 5;

/** Composes a lane of the real parts: the kernel's clock, sockets, files and entropy. */
export function laneOptions(poller: Poller, emit: (event: LaneEvent) => void): LaneCoreOptions {
  return {
    emit,
    backends: {
      blk: (spec) => openBlk(spec),
      rng: (spec, host) => openRng(spec, systemRandom, host),
    },
    makeBus: (spec, emitFromBus) =>
      new BusRuntime({
        bus: spec.bus,
        maxMessageSize: spec.maxMessageSizeBytes,
        dialect: dialectD5,
        transport: new LoopbackTransport({
          ...spec,
          revision: dialectD5.spec.revision,
          dialect: loopbackDialect,
          poller,
          clock: systemClock,
        }),
        store: new RecoveryFiles(spec.recoveryDir),
        clock: systemClock,
        scheduler: systemScheduler,
        random: systemRandom,
        emit: emitFromBus,
      }),
  };
}
