import { unreachable } from '../../kit/assert.ts';
import type { LaneEvent } from '../lane/protocol.ts';
import type { EventHub } from './event-hub.ts';
import type { Inventory } from './inventory.ts';
import type { ServiceLog } from './log.ts';
import { hex, isDegraded, statusNames } from './status.ts';

interface Reporting {
  readonly inventory: Inventory;
  readonly events: EventHub;
  readonly log: ServiceLog;
}

/** Passes on what the lane reports, in the words of the API. */
export function reportLaneEvent(event: LaneEvent, { inventory, events, log }: Reporting): void {
  switch (event.type) {
    case 'bus-connected': {
      const { bus, epoch, peer, resumed } = event;
      events.emit({ type: event.type, kind: 'buses', object: bus, data: { epoch: hex(epoch), peer, resumed } });
      return;
    }
    case 'bus-disconnected': {
      const { bus, epoch, reason } = event;
      events.emit({ type: event.type, kind: 'buses', object: bus, data: { epoch: hex(epoch), reason } });
      return;
    }
    case 'bus-refused': {
      const { bus, peer, reason } = event;
      events.emit({ type: event.type, kind: 'buses', object: bus, data: { peer, reason } });
      return;
    }
    case 'bus-diagnosis':
      events.emit({ type: event.type, kind: 'buses', object: event.bus, data: { text: event.text } });
      return;
    case 'device-status':
      reportDevice(event, inventory, events);
      return;
    case 'served-devices': {
      const devices = event.devices.map(String);
      events.emit({ type: event.type, kind: 'buses', object: event.bus, data: { devices } });
      return;
    }
    case 'share-stuck':
    case 'share-released': {
      const { type, bus, mapperBus, ...data } = event;
      events.emit({ type, kind: 'buses', object: mapperBus, data: { ...data, bus } });
      return;
    }
    case 'program-log': {
      const { backend, program, level, text } = event;
      log[level]({ backend, program }, `${program}: ${text}`);
      return;
    }
    case 'attachment-ready':
    case 'attachment-lost':
      // The state of the attachment says it.
      return;
    case 'lane-failed':
      log.warn({ reason: event.reason }, 'the lane failed');
      events.emit({ type: event.type, kind: 'service', object: '', data: { reason: event.reason } });
      return;
    default:
      unreachable(event, 'lane event');
  }
}

function reportDevice(
  event: Extract<LaneEvent, { type: 'device-status' }>,
  inventory: Inventory,
  events: EventHub,
): void {
  const { bus, attachment, deviceNumber, status, reason } = event;
  const about = { kind: 'attachments', object: attachment } as const;
  events.emit({ type: event.type, ...about, data: { bus, deviceNumber, status: statusNames(status), reason } });
  const entry = inventory.get('attachments', attachment);
  const degraded = isDegraded(event);
  if (entry === undefined || entry.lane.degraded === degraded) return;
  entry.lane.degraded = degraded;
  const state = degraded ? 'degraded' : 'active';
  events.emit({ type: 'attachment-state', ...about, data: { state, reason, bus, deviceNumber } });
}
