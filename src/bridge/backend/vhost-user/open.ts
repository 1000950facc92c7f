import type { RingBackend } from '../../../device/queue-engine.ts';
import type { Clock } from '../../../kit/clock.ts';
import { limits } from '../../../kit/limits.ts';
import type { Scheduler } from '../../../kit/scheduler.ts';
import type { Poller } from '../../../libc/poll.ts';
import type { SharedSignal } from '../../../libc/signal-batch.ts';
import type { Backend, BackendHost } from '../../../ports/backend.ts';
import { isDeviceBit } from '../../../virtio/features.ts';
import type { DataPlane } from '../../data-plane/data-plane.ts';
import type { LaneBackendSpec } from '../../lane/protocol.ts';
import { ShadowBackend } from '../../shadow/shadow-backend.ts';
import { bridgeVendorId } from '../vendor.ts';
import { VhostUserControl } from './control.ts';
import { type DirectWay, reasonForCopies } from './data-path.ts';
import { openDirect } from './direct/backend.ts';
import type { Endpoint } from './endpoint.ts';
import { Link } from './link.ts';
import { shapeOf, type VhostUserDevice } from './shapes.ts';

type VhostUserSpec = Extract<LaneBackendSpec, { type: 'vhost-user' | 'program' }>;

export interface VhostUserParts {
  readonly poller: Poller;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly signals: SharedSignal;
  readonly dataPlane: DataPlane;
  /** Address for a network device whose back-end gives none. */
  readonly mac?: string;
}

async function orClosed<T>(endpoint: Endpoint, open: () => Promise<T>): Promise<T> {
  try {
    return await open();
  } catch (error) {
    // Its program may take longer to end than the caller waits; the next start waits for that.
    void endpoint.close();
    throw error;
  }
}

/**
 * A device that a vhost-user back-end serves.
 * @throws VmsgError as `openConnection`, and as `reasonForCopies`
 */
export async function openVhostUser(
  spec: VhostUserSpec,
  endpoint: Endpoint,
  host: BackendHost,
  way: DirectWay,
  parts: VhostUserParts,
): Promise<Backend | RingBackend> {
  const reason = reasonForCopies(spec, endpoint, way);
  if (reason !== undefined) return await openCopied(spec.device, endpoint, reason, host, parts);
  const { poller, signals, dataPlane, clock, mac } = parts;
  const shape = shapeOf(spec.device);
  const refused = (why: string): void => way.ruleOut(why);
  const direct = { endpoint, shape, poller, signals, dataPlane, clock, host, refused };
  return await orClosed(endpoint, () => openDirect({ ...direct, ...(mac === undefined ? {} : { mac }) }));
}

/**
 * With the data copied through memory of ours. A device without state goes on when its back-end comes back; one with state
 * leaves the bus with it.
 */
async function openCopied(
  device: VhostUserDevice,
  endpoint: Endpoint,
  shadowReason: string,
  host: BackendHost,
  { poller, clock, scheduler, mac }: VhostUserParts,
): Promise<Backend> {
  const shape = shapeOf(device);
  const linked = { endpoint, shape, poller, clock, ...(mac === undefined ? {} : { mac }) };
  const link = await orClosed(endpoint, () => Link.open(linked));
  const { features, config, queues } = link.description;
  const { name } = endpoint;
  const backend = new ShadowBackend({
    name,
    shadowReason,
    resumes: shape.stateless,
    remote: {
      type: shape.type,
      vendorId: bridgeVendorId,
      uuid: new Uint8Array(16),
      deviceBits: features.bits().filter(isDeviceBit),
      config,
      ...(shape.driverConfig === undefined ? {} : { driverConfig: shape.driverConfig }),
      queueSizes: new Array<number>(queues).fill(limits.shadowRingEntries),
      queueReset: true,
      oneBuffer: shape.oneBuffer ?? false,
    },
    control: new VhostUserControl(link, clock),
    host,
    clock,
    scheduler,
    configWriteMaxBytes: limits.vhostUserConfigMaxBytes,
    close: async () => {
      link.close();
      await endpoint.close();
    },
  });
  const away = (reason: string): void => host.away?.(`${name} is away: ${reason}`);
  link.listen({
    used: (queue) => backend.onUsed(queue),
    configChanged: () => backend.onConfigChanged(),
    broken: () => backend.onBroken('it says that a queue is broken'),
    away,
    back: () => {
      host.away?.(null);
      backend.onBack();
    },
    lost: (reason) => {
      if (!shape.stateless) {
        host.gone?.(`${name} has gone: ${reason}`);
        return;
      }
      away(reason);
      backend.onForgotten();
    },
  });
  return backend;
}
