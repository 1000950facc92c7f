import { DataPlane } from '../bridge/data-plane/data-plane.ts';
import { InlineLink } from '../bridge/data-plane/inline-link.ts';
import { WorkerLink } from '../bridge/data-plane/worker-link.ts';
import type { DataPlaneSettings } from '../bridge/lane/protocol.ts';
import { systemScheduler } from '../kit/scheduler.ts';
import type { Poller } from '../libc/poll.ts';
import type { Hypervisor } from '../ports/hypervisor.ts';

/** Composes the data plane of a lane of the real parts; threads start when they are needed. */
export function openDataPlane(
  { dataPlaneWorkers: workers, dataPlaneSpinUs: spinUs }: DataPlaneSettings,
  poller: Poller,
  hypervisor: Hypervisor,
): DataPlane {
  const parts = { poller, scheduler: systemScheduler, openChannels: () => hypervisor.openEventChannels() };
  return new DataPlane({
    places: Math.max(1, workers),
    open: (ended) =>
      workers === 0
        ? new InlineLink({ ...parts, ended })
        : new WorkerLink(new URL('./data-plane-worker.js', import.meta.url), spinUs, ended),
  });
}
