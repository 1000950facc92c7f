import type { FlightRecord } from '../../device/flight-recorder.ts';
import { dialectD5 } from '../../virtio-msg/dialect.ts';
import { idEvent, typeBus, typeResponse } from '../../virtio-msg/header.ts';
import type { Channel, MessageRecord, Share } from '../commands.ts';
import type { Entry, Inventory } from './inventory.ts';
import { busIn, busState, hex, noCounters, type StatusSources } from './status.ts';

export function channelOf(entry: Entry<'buses'>, { snapshot, laneFailure }: StatusSources): Channel {
  const bus = busIn(snapshot, entry.id);
  const channel = bus?.channel ?? null;
  return {
    id: entry.id,
    domain: entry.spec.domain,
    ...busState(entry, bus, laneFailure),
    epoch: hex(bus?.epoch ?? 0n),
    peer: bus?.peer ?? null,
    dialect: channel?.dialect ?? null,
    maxMessageSizeBytes: channel?.maxMessageSizeBytes ?? null,
    slotBytes: channel?.slotBytes ?? null,
    backlogMessages: channel?.backlogMessages ?? null,
    counters: bus?.counters ?? noCounters,
  };
}

/** Every region of every bus that the API shows. */
export function sharesOf(inventory: Inventory, { snapshot }: StatusSources): Share[] {
  return (snapshot?.buses ?? []).flatMap(({ bus, shares }) => {
    const entry = inventory.get('buses', bus);
    if (entry === undefined || entry.phase === 'creating') return [];
    return shares.map((share) => ({ id: `${bus}.${share.area}`, bus, domain: entry.spec.domain, ...share }));
  });
}

export function recordOf({ type, id, deviceNumber, ageMs, ...record }: FlightRecord): MessageRecord {
  const isBusMessage = (type & typeBus) !== 0;
  return {
    sequence: record.sequence,
    ageMs: Math.max(0, Math.round(ageMs * 1000) / 1000),
    direction: record.direction,
    kind: (type & typeResponse) !== 0 ? 'response' : (id & idEvent) !== 0 ? 'event' : 'request',
    message: dialectD5.nameOf(type, id) ?? null,
    messageId: id,
    isBusMessage,
    deviceNumber: isBusMessage ? null : deviceNumber,
    token: record.token,
    sizeBytes: record.sizeBytes,
  };
}
