import type { Clock } from '../../../kit/clock.ts';
import { limits } from '../../../kit/limits.ts';
import type { Scheduler } from '../../../kit/scheduler.ts';
import type { Poller } from '../../../libc/poll.ts';
import type { Backend, BackendHost } from '../../../ports/backend.ts';
import { isDeviceBit } from '../../../virtio/features.ts';
import type { LaneBackendSpec } from '../../lane/protocol.ts';
import { ShadowBackend } from '../../shadow/shadow-backend.ts';
import { bridgeVendorId } from '../vendor.ts';
import { VhostUserControl } from './control.ts';
import { Link } from './link.ts';
import { shapeOf } from './shapes.ts';

export interface VhostUserParts {
  readonly poller: Poller;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
}

/**
 * A device that a vhost-user back-end serves, with the data copied through memory of ours. A device without state goes
 * on when its back-end comes back; one with state leaves the bus with it.
 * @throws VmsgError as `Session.open`
 */
export async function openVhostUser(
  { socket, device }: Extract<LaneBackendSpec, { type: 'vhost-user' }>,
  host: BackendHost,
  { poller, clock, scheduler }: VhostUserParts,
): Promise<Backend> {
  const shape = shapeOf(device);
  const link = await Link.open({ socket, shape, poller, clock });
  const { features, config, queues } = link.description;
  const name = `the back-end at ${socket}`;
  const backend = new ShadowBackend({
    name,
    shadowReason: 'a vhost-user back-end by its socket gets copies: it may outlive the service and the guest',
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
    },
    control: new VhostUserControl(link, clock),
    host,
    clock,
    scheduler,
    configWriteMaxBytes: limits.vhostUserConfigMaxBytes,
    close: async () => link.close(),
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
        host.gone?.(reason);
        return;
      }
      away(reason);
      backend.onForgotten();
    },
  });
  return backend;
}
