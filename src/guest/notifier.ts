import { queueNotifyProgram } from '../virtio-msg/bus-messages.ts';
import type { QueueSignal } from './access.ts';
import type { GuestBus } from './bus.ts';
import type { Phase } from './bus-types.ts';

/** How driver and device wake each other about one queue. */
export interface Notifier {
  /** Tells the service where notifications go; again after each reconnection. */
  wire(phase: Phase): Promise<void>;
  start(onUsed: () => void): void;
  /** @param next `notificationData` of the queue, or 0 without NOTIFICATION_DATA */
  kick(next: number): void;
  /** Idempotent. */
  close(): void;
}

/** Whether another program works on the queues of a device, so that notifications can go to it without the service. */
export async function hasProgram(bus: GuestBus, device: number): Promise<boolean> {
  if (!bus.terms.queueNotify) return false;
  const question = { device, queue: 0, flags: queueNotifyProgram, kick: 0, call: 0 };
  return (await bus.busRequest('QUEUE_NOTIFY', question)).errno === 0;
}

/** EVENT_AVAIL and EVENT_USED; the bus delivers the latter. */
export const messageNotifier = (bus: GuestBus, device: number, queue: number): Notifier => ({
  wire: async () => {},
  start: () => {},
  kick: (next) => bus.notify(device, queue, next),
  close: () => {},
});

/** A way of the queue's own (QUEUE_NOTIFY). */
export const signalNotifier = (bus: GuestBus, device: number, queue: number, signal: QueueSignal): Notifier => ({
  wire: (phase) => bus.queueNotify(device, queue, signal, phase),
  start: (onUsed) => signal.start(onUsed),
  kick: () => signal.kick(),
  close: () => signal.close(),
});
