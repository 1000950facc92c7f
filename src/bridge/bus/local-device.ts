import { DeviceHost } from '../../device/host.ts';
import { deviceModel } from '../../device/model.ts';
import type { RingBackend } from '../../device/queue-engine.ts';
import { DeviceRecovery, recoveryBytes } from '../../device/recovery.ts';
import type { Clock } from '../../kit/clock.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import type { Backend } from '../../ports/backend.ts';
import type { RecoveryMemory } from '../../ports/recovery.ts';

export interface LocalDeviceOptions {
  readonly backend: Backend | RingBackend;
  readonly identity: Uint8Array;
  /** Opens the recovery memory of the device, `length` bytes. */
  readonly memory: (length: number) => RecoveryMemory;
  readonly maxMessageSize: number;
  readonly scheduler: Scheduler;
  readonly clock: Clock;
  readonly onStatus: (status: number) => void;
}

/** A device whose backend runs in this lane, with its recovery memory where it can go on after a restart. */
export function openLocalDevice(options: LocalDeviceOptions): { host: DeviceHost; close: () => Promise<void> } {
  const { backend, identity, memory, scheduler, clock, onStatus } = options;
  const queues = backend.description.queueSizes.length;
  const recovery =
    backend.resumes === false ? undefined : new DeviceRecovery(memory(recoveryBytes(queues)), identity, queues);
  const model = deviceModel(backend.description, options.maxMessageSize);
  const host = new DeviceHost({ model, backend, scheduler, clock, recovery, onStatus });
  const close = async (): Promise<void> => {
    await backend.close();
    recovery?.close();
  };
  return { host, close };
}
