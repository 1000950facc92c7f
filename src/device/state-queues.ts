import { feature } from '../virtio/features.ts';
import { isQueueSize, type RingLayout, ringAlign, ringLayout } from '../virtio/geometry.ts';
import { status } from '../virtio/status.ts';
import { setVqueueFlags as flag, type transportRequests, vqueueEnabled } from '../virtio-msg/transport-messages.ts';
import type { Decoded } from '../wire/layout.ts';
import type { DeviceModel, DeviceState, QueueState } from './model.ts';

type SetVqueue = Decoded<(typeof transportRequests)['SET_VQUEUE']['request']>;

/** GET_VQUEUE: all zero but the index when there is no such queue (D5). */
export function queueResponse(model: DeviceModel, state: DeviceState, index: number) {
  const maxSize = model.queueMaxSizes[index] ?? 0;
  const queue = maxSize === 0 ? undefined : state.queues[index];
  return {
    index,
    maxSize,
    size: queue?.size ?? 0,
    flags: queue?.enabled ? vqueueEnabled : 0,
    descAddr: queue?.descAddr ?? 0n,
    driverAddr: queue?.driverAddr ?? 0n,
    deviceAddr: queue?.deviceAddr ?? 0n,
  };
}

export const resetQueueAllowed = (state: DeviceState, index: number): boolean =>
  state.driverFeatures.has(feature.RING_RESET) &&
  (state.status & status.FEATURES_OK) !== 0 &&
  (state.status & status.DEVICE_NEEDS_RESET) === 0 &&
  !state.resetting &&
  state.queues[index] !== undefined;

/** SET_VQUEUE: all of it or nothing (D5); the response is the same either way, GET_VQUEUE tells. */
export function setVqueue(model: DeviceModel, state: DeviceState, request: SetVqueue): DeviceState {
  const current = state.queues[request.index];
  const maxSize = model.queueMaxSizes[request.index] ?? 0;
  if (current === undefined || maxSize === 0) return state;
  // The ring layout depends on the features, so queues come after FEATURES_OK (virtio 1.3, 3.1.1).
  if (!(state.status & status.FEATURES_OK) || state.status & status.DEVICE_NEEDS_RESET || state.resetting) return state;
  const next = updated(current, request, maxSize, ringLayout(state.driverFeatures));
  if (next === undefined) return state;
  return { ...state, queues: state.queues.map((queue, i) => (i === request.index ? next : queue)) };
}

function updated(current: QueueState, request: SetVqueue, maxSize: number, layout: RingLayout): QueueState | undefined {
  const operation = request.flags & flag.operationMask;
  if (request.reserved !== 0 || (request.flags & ~flag.definedMask) !== 0 || operation === 3) return undefined;
  const ignores = flag.ignoreSize | flag.ignoreDesc | flag.ignoreDriver | flag.ignoreDevice;
  const changesFields = (request.flags & ignores) !== ignores;
  if (current.enabled && (operation === flag.stayDisabled || changesFields)) return undefined;
  const next: QueueState = {
    size: request.flags & flag.ignoreSize ? current.size : request.size,
    descAddr: request.flags & flag.ignoreDesc ? current.descAddr : request.descAddr,
    driverAddr: request.flags & flag.ignoreDriver ? current.driverAddr : request.driverAddr,
    deviceAddr: request.flags & flag.ignoreDevice ? current.deviceAddr : request.deviceAddr,
    enabled: current.enabled || operation === flag.enable,
  };
  return isUsable(next, maxSize, layout) ? next : undefined;
}

/** Size and alignment of a queue (virtio 1.3, 2.7, 2.8). A queue that stays disabled may be unconfigured. */
function isUsable(queue: QueueState, maxSize: number, layout: RingLayout): boolean {
  const { size } = queue;
  if (size > maxSize) return false;
  if (size === 0) return !queue.enabled;
  if (!isQueueSize(layout, size)) return false;
  const align = ringAlign(layout);
  return (['desc', 'driver', 'device'] as const).every((part) => queue[`${part}Addr`] % BigInt(align[part]) === 0n);
}
