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
