import type { Clock } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import { errnoName } from '../../libc/errno.ts';
import type { Backend, BackendHost } from '../../ports/backend.ts';
import { configBytesPerMessage, type TransportEvent } from '../../virtio-msg/transport-messages.ts';
import type { RemoteEvents } from '../remote/peer.ts';
import { checkFree, type RemoteBus } from '../remote/remote-bus.ts';
import type { BounceMemory } from './bounce-memory.ts';
import type { ShadowDescription } from './control.ts';
import { RemoteControl } from './remote-control.ts';
import { ShadowBackend } from './shadow-backend.ts';
import { bounceArea } from './shadow-memory.ts';

export interface ShadowOptions {
  /** Why data is copied. */
  readonly reason: string;
  readonly host: BackendHost;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
}

/** Events of the serving side from the moment that the device is ours. */
class Inbox implements RemoteEvents {
  backend: ShadowBackend | undefined;
  gone: string | undefined;
  readonly #host: BackendHost;

  constructor(host: BackendHost) {
    this.#host = host;
  }

  onEvent(event: TransportEvent): void {
    this.backend?.onEvent(event);
  }

  onGone(reason: string): void {
    this.gone = reason;
    if (this.backend !== undefined) this.#host.gone?.(reason);
  }
}

/**
 * Takes a device of a serving side for the shadow path: shares bounce memory with that side, resets the device and
 * reads what it is.
 * @throws VmsgError unavailable, backend-busy, backend-unusable, protocol-violation, system-call, hypervisor-call
 */
export async function openShadow(bus: RemoteBus, number: number, options: ShadowOptions): Promise<Backend> {
  checkFree(bus, number);
  const { bounce } = bus.peer;
  if (bounce === undefined) throw new VmsgError('backend-unusable', 'this bus has no memory for the shadow path');
  const memory = bounce(limits.shadowMemoryBytes);
  const inbox = new Inbox(options.host);
  bus.claim(number, inbox);
  const peer = bus.nextPeer();
  const close = async (): Promise<void> => {
    // Together: each waits for a side that may be gone.
    await Promise.all([bus.bind(number, 0), bus.removeRegion({ peer, area: bounceArea, reserved: 0 })]);
    memory.close();
    bus.release(number, inbox);
  };
  try {
    const { reason, clock, scheduler, host } = options;
    const control = new RemoteControl(bus, number, clock);
    const remote = await introduce(bus, number, peer, memory, control);
    const configWriteMaxBytes = configBytesPerMessage(bus.peer.maxMessageSize);
    const backend = new ShadowBackend({
      shadowReason: reason,
      name: `device ${number} of the serving side`,
      remote,
      control,
      host,
      clock,
      scheduler,
      configWriteMaxBytes,
      close,
    });
    if (inbox.gone !== undefined) throw new VmsgError('unavailable', inbox.gone);
    inbox.backend = backend;
    return backend;
  } catch (error) {
    await close();
    throw error;
  }
}

async function introduce(
  bus: RemoteBus,
  number: number,
  peer: number,
  memory: BounceMemory,
  control: RemoteControl,
): Promise<ShadowDescription> {
  const named = memory.name(bus.peer.giveDescriptor);
  const mustNot = (what: string, result: number): void => {
    if (result !== 0) throw new VmsgError('unavailable', `the serving side answered ${what} with ${errnoName(result)}`);
  };
  if (typeof named === 'string') throw new VmsgError('unavailable', `memory cannot be shared: ${named}`);
  const length = BigInt(memory.bytes.length);
  mustNot('REGION_ADD', await bus.addRegion({ peer, area: bounceArea, flags: 0, ...named, offset: 0n, length }));
  memory.named();
  mustNot('DEVICE_BIND', await bus.bind(number, peer));
  await control.reset();
  return await control.describe(memory.bytes);
}
