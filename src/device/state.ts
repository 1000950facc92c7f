import { unreachable } from '../kit/assert.ts';
import { FeatureSet, feature } from '../virtio/features.ts';
import { status } from '../virtio/status.ts';
import {
  configBytesPerMessage,
  type TransportEvent,
  type TransportRequest,
  type TransportResponse,
} from '../virtio-msg/transport-messages.ts';
import type { DeviceModel, DeviceState, QueueState } from './model.ts';
import { queueResponse, resetQueueAllowed, setVqueue } from './state-queues.ts';

export type DeviceInput =
  | { readonly kind: 'request'; readonly request: TransportRequest }
  /** The reset effect is complete. */
  | { readonly kind: 'reset-done' }
  /** The reset effect goes on in the background: answer the request now. */
  | { readonly kind: 'reset-deferred' }
  | { readonly kind: 'queue-stopped'; readonly index: number }
  | { readonly kind: 'config-written'; readonly accepted: boolean }
  | { readonly kind: 'config-changed'; readonly offset: number; readonly data: Uint8Array }
  /** The device cannot go on without a reset. */
  | { readonly kind: 'fault' };

export type DeviceEffect =
  | { readonly kind: 'respond'; readonly response: TransportResponse }
  /** The request asks for more than a message can carry: it fails visibly. */
  | { readonly kind: 'refuse' }
  | { readonly kind: 'event'; readonly event: TransportEvent }
  /** DRIVER_OK: tell the backend; `start-queue` effects follow. */
  | { readonly kind: 'activate' }
  | { readonly kind: 'start-queue'; readonly index: number }
  /** Answered by `queue-stopped`. */
  | { readonly kind: 'stop-queue'; readonly index: number }
  /** Stop every queue without waiting: the device is broken until it is reset. */
  | { readonly kind: 'halt' }
  /** Answered by `reset-done`, possibly after `reset-deferred`. */
  | { readonly kind: 'reset' }
  /** Answered by `config-written`. */
  | { readonly kind: 'write-config'; readonly offset: number; readonly data: Uint8Array };

export interface Step {
  readonly state: DeviceState;
  readonly effects: readonly DeviceEffect[];
}

const noQueue: QueueState = { size: 0, descAddr: 0n, driverAddr: 0n, deviceAddr: 0n, enabled: false };
const eventConfigHeaderBytes = 24;
const featuresHeaderBytes = 16;
/** Status bits that a driver may set. */
const driverMask = status.ACKNOWLEDGE | status.DRIVER | status.FEATURES_OK | status.DRIVER_OK | status.FAILED;

export function initialState(model: DeviceModel, config: Uint8Array): DeviceState {
  return {
    status: 0,
    driverFeatures: FeatureSet.empty,
    queues: model.queueMaxSizes.map(() => noQueue),
    generation: 0,
    config,
    resetting: false,
    waiting: null,
  };
}

/**
 * The life of one device (virtio 1.3 section 3.1, virtio-msg D5 Device Operation), without any I/O:
 * what the driver asked or the backend did, in; the new state and what is to be done, out. Requests come one at a
 * time: the next only after the `respond` effect of the one before.
 */
export function step(model: DeviceModel, state: DeviceState, input: DeviceInput): Step {
  switch (input.kind) {
    case 'request':
      return onRequest(model, state, input.request);
    case 'reset-done':
      return onResetDone(model, state);
    case 'reset-deferred':
      return respond({ ...state, waiting: null }, statusResponse(state.status));
    case 'queue-stopped':
      return onQueueStopped(state, input.index);
    case 'config-written':
      return onConfigWritten(state, input.accepted);
    case 'config-changed':
      return onConfigChanged(model, state, input.offset, input.data);
    case 'fault':
      return onFault(state);
    default:
      return unreachable(input, 'device input');
  }
}

const respond = (state: DeviceState, response: TransportResponse, before: readonly DeviceEffect[] = []): Step => ({
  state,
  effects: [...before, { kind: 'respond', response }],
});

const refuse = (state: DeviceState): Step => ({ state, effects: [{ kind: 'refuse' }] });

const statusResponse = (value: number): TransportResponse => ({
  kind: 'response',
  name: 'SET_DEVICE_STATUS',
  body: { status: value },
});

function onRequest(model: DeviceModel, state: DeviceState, request: TransportRequest): Step {
  const answer = (body: object): Step =>
    respond(state, { kind: 'response', name: request.name, body } as TransportResponse);
  switch (request.name) {
    case 'GET_DEVICE_INFO':
      return answer({
        deviceId: model.deviceType,
        vendorId: model.vendorId,
        uuid: model.uuid,
        featureBlockCount: model.featureBlockCount,
        configSize: state.config.length,
        maxVirtqueues: model.queueMaxSizes.length,
        adminStart: 0,
        adminCount: 0,
      });
    case 'GET_DEVICE_FEATURES': {
      const { blockIndex, blockCount } = request.body;
      if (featuresHeaderBytes + blockCount * 4 > model.maxMessageSize) return refuse(state);
      const blocks = Array.from({ length: blockCount }, (_, i) => model.offered.block(blockIndex + i));
      return answer({ blockIndex, blockCount, blocks });
    }
    case 'SET_DRIVER_FEATURES':
      return respond(setDriverFeatures(model, state, request.body.blockIndex, request.body.blocks), {
        kind: 'response',
        name: 'SET_DRIVER_FEATURES',
        body: {},
      });
    case 'GET_CONFIG': {
      const { offset, length } = request.body;
      if (length > configBytesPerMessage(model.maxMessageSize)) return refuse(state);
      // A range that leaves the space reads nothing: the driver must not ask for it (D5, GET_CONFIG).
      const inside = offset + length <= state.config.length;
      const data = inside ? state.config.slice(offset, offset + length) : new Uint8Array(0);
      return answer({ generation: state.generation, offset, length: data.length, data });
    }
    case 'SET_CONFIG':
      return setConfig(state, request);
    case 'GET_DEVICE_STATUS':
      return answer({ status: state.status });
    case 'SET_DEVICE_STATUS':
      return setStatus(model, state, request);
    case 'GET_VQUEUE':
      return answer(queueResponse(model, state, request.body.index));
    case 'SET_VQUEUE': {
      const next = setVqueue(model, state, request.body);
      const started = !isEnabled(state, request.body.index) && isEnabled(next, request.body.index) && isRunning(next);
      const effects: DeviceEffect[] = started ? [{ kind: 'start-queue', index: request.body.index }] : [];
      return respond(next, { kind: 'response', name: 'SET_VQUEUE', body: {} }, effects);
    }
    case 'RESET_VQUEUE':
      return resetQueue(state, request);
    case 'GET_SHM':
      return answer({
        index: request.body.index,
        reserved: 0,
        ...(model.sharedMemory.get(request.body.index) ?? { length: 0n, address: 0n }),
      });
    default:
      return unreachable(request, 'request');
  }
}

const isEnabled = (state: DeviceState, index: number): boolean => state.queues[index]?.enabled === true;

/** Whether the device serves its queues. */
export const isRunning = (state: DeviceState): boolean =>
  (state.status & status.DRIVER_OK) !== 0 && (state.status & status.DEVICE_NEEDS_RESET) === 0 && !state.resetting;

function setDriverFeatures(
  model: DeviceModel,
  state: DeviceState,
  blockIndex: number,
  blocks: readonly number[],
): DeviceState {
  if (state.resetting || state.status & status.FEATURES_OK) return state;
  const count = model.featureBlockCount;
  // One spare block stands for all bits that the device does not have: any of them refuses FEATURES_OK.
  const words = state.driverFeatures.toBlocks(count + 1);
  for (const [i, word] of blocks.entries()) {
    const at = blockIndex + i;
    if (at < count) words[at] = word;
    else if (word !== 0) words[count] = 1;
  }
  return { ...state, driverFeatures: FeatureSet.fromBlocks(words) };
}

function setConfig(state: DeviceState, request: Extract<TransportRequest, { name: 'SET_CONFIG' }>): Step {
  const { offset, length, data } = request.body;
  const possible = length > 0 && offset + length <= state.config.length && !state.resetting;
  if (!possible) {
    const body = { generation: state.generation, offset, length: 0, data: new Uint8Array(0) };
    return respond(state, { kind: 'response', name: 'SET_CONFIG', body });
  }
  return { state: { ...state, waiting: request }, effects: [{ kind: 'write-config', offset, data }] };
}

function onConfigWritten(state: DeviceState, accepted: boolean): Step {
  const request = state.waiting;
  if (request?.name !== 'SET_CONFIG') return { state, effects: [] };
  const { offset, length, data } = request.body;
  const config = state.config.slice();
  if (accepted) config.set(data, offset);
  const generation = accepted ? nextGeneration(state) : state.generation;
  const body = accepted
    ? { generation, offset, length, data }
    : { generation, offset, length: 0, data: new Uint8Array(0) };
  return respond({ ...state, config, generation, waiting: null }, { kind: 'response', name: 'SET_CONFIG', body });
}

const nextGeneration = (state: DeviceState): number => (state.generation + 1) >>> 0;

function onConfigChanged(model: DeviceModel, state: DeviceState, offset: number, data: Uint8Array): Step {
  const config = state.config.slice();
  config.set(data, offset);
  const next = { ...state, config, generation: nextGeneration(state) };
  if (!isRunning(next)) return { state: next, effects: [] };
  const fits = data.length <= model.maxMessageSize - eventConfigHeaderBytes;
  const range = fits ? { offset, length: data.length, data } : { offset: 0, length: 0, data: new Uint8Array(0) };
  return { state: next, effects: [{ kind: 'event', event: configEvent(next, range) }] };
}

function configEvent(
  state: DeviceState,
  range: { offset: number; length: number; data: Uint8Array } = { offset: 0, length: 0, data: new Uint8Array(0) },
): TransportEvent {
  return {
    kind: 'event',
    name: 'EVENT_CONFIG',
    body: { status: state.status, generation: state.generation, ...range },
  };
}

function setStatus(
  model: DeviceModel,
  state: DeviceState,
  request: Extract<TransportRequest, { name: 'SET_DEVICE_STATUS' }>,
): Step {
  const wanted = request.body.status;
  if (state.resetting) return respond(state, statusResponse(state.status));
  if (wanted === 0) {
    const next = { ...state, driverFeatures: FeatureSet.empty };
    if (state.status === 0) return respond(next, statusResponse(0));
    return { state: { ...next, resetting: true, waiting: request }, effects: [{ kind: 'reset' }] };
  }
  // Bits stay until a reset (virtio 1.3, 2.1.1), whatever the driver clears.
  let value = state.status | (wanted & driverMask);
  if (!(state.status & status.FEATURES_OK) && value & status.FEATURES_OK && !featuresAcceptable(model, state)) {
    value &= ~status.FEATURES_OK;
  }
  if (!(value & status.FEATURES_OK) && !(state.status & status.DRIVER_OK)) value &= ~status.DRIVER_OK;
  const next = { ...state, status: value };
  const starts = isRunning(next) && !isRunning(state);
  const queues = starts
    ? next.queues.flatMap((q, index) => (q.enabled ? [{ kind: 'start-queue', index } as const] : []))
    : [];
  return respond(next, statusResponse(value), starts ? [{ kind: 'activate' }, ...queues] : []);
}

function featuresAcceptable(model: DeviceModel, state: DeviceState): boolean {
  const wanted = state.driverFeatures;
  return wanted.isSubsetOf(model.offered) && wanted.has(feature.VERSION_1) && wanted.has(feature.ACCESS_PLATFORM);
}

function resetQueue(state: DeviceState, request: Extract<TransportRequest, { name: 'RESET_VQUEUE' }>): Step {
  const index = request.body.index;
  if (!resetQueueAllowed(state, index)) return respond(state, { kind: 'response', name: 'RESET_VQUEUE', body: {} });
  if (isRunning(state) && isEnabled(state, index)) {
    return { state: { ...state, waiting: request }, effects: [{ kind: 'stop-queue', index }] };
  }
  return respond(clearQueue(state, index), { kind: 'response', name: 'RESET_VQUEUE', body: {} });
}

function onQueueStopped(state: DeviceState, index: number): Step {
  if (state.waiting?.name !== 'RESET_VQUEUE') return { state, effects: [] };
  return respond({ ...clearQueue(state, index), waiting: null }, { kind: 'response', name: 'RESET_VQUEUE', body: {} });
}

const clearQueue = (state: DeviceState, index: number): DeviceState => ({
  ...state,
  queues: state.queues.map((queue, i) => (i === index ? noQueue : queue)),
});

function onResetDone(model: DeviceModel, state: DeviceState): Step {
  const fresh = { ...initialState(model, state.config), generation: state.generation };
  const answered = state.waiting?.name === 'SET_DEVICE_STATUS';
  return answered ? respond(fresh, statusResponse(0)) : { state: fresh, effects: [] };
}

function onFault(state: DeviceState): Step {
  // In reset there is nothing to break, and a driver that waits for status 0 must see it.
  if (state.status === 0 || state.status & status.DEVICE_NEEDS_RESET || state.resetting) return { state, effects: [] };
  const next = { ...state, status: state.status | status.DEVICE_NEEDS_RESET };
  const told = (state.status & status.DRIVER_OK) !== 0;
  // A configuration change notification must follow when DRIVER_OK was set (virtio 1.3, 2.1.2).
  return {
    state: next,
    effects: [{ kind: 'halt' }, ...(told ? [{ kind: 'event', event: configEvent(next) } as const] : [])],
  };
}
