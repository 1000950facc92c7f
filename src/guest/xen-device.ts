import { RingPort } from '../device/ring-port.ts';
import { XenResources } from '../device/xen-resources.ts';
import type { Clock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Admission, BusPort, GuestConnection } from '../ports/bus.ts';
import type { GrantMapper, Hypervisor } from '../ports/hypervisor.ts';
import { RingConsumer, RingProducer } from '../virtio-msg/ring.ts';
import { HypervisorError } from '../xen/errors.ts';
import type { DeviceAccess, DeviceAccessHandlers } from './device-connection.ts';
import { XenAccess, type XenOptions } from './xen-access.ts';
import type { XenConnection } from './xen-connection.ts';

/** The connection of a guest that serves devices on a Xen bus. */
class XenDeviceConnection implements GuestConnection {
  readonly port: BusPort;
  readonly resources: XenResources;
  readonly admission: Admission;
  readonly maxMessageSize: number;
  /** The bridge forwards every kick as EVENT_AVAIL. */
  readonly outOfBandKicks = false;
  readonly #connection: XenConnection;
  readonly #onLost: (reason: string) => void;

  constructor(connection: XenConnection, resources: XenResources, onLost: (reason: string) => void) {
    const { toService, toGuest, slotSize, sleepWords, terms } = connection;
    this.#connection = connection;
    this.resources = resources;
    this.#onLost = onLost;
    this.maxMessageSize = terms.maxMessageSize;
    this.admission = { epoch: terms.epoch, token: terms.token, resumed: false };
    this.port = new RingPort(
      slotSize,
      new RingConsumer(toGuest, slotSize, sleepWords),
      new RingProducer(toService, slotSize, sleepWords),
      () => connection.ring(),
    );
  }

  onDoorbell(listener: () => void): void {
    const onLost = (reason: string): void => {
      this.close();
      this.#onLost(reason);
    };
    this.#connection.start({ onDoorbell: listener, onLost });
  }

  close(): void {
    this.resources.close();
    this.#connection.close();
  }
}

/** A Xen bus of role `device`. Maps the memory that the domains of its drivers grant to this one. */
export class XenDeviceAccess implements DeviceAccess {
  readonly #access: XenAccess;
  readonly #hypervisor: Hypervisor;
  readonly #clock: Clock;
  #mapper: GrantMapper | undefined;

  constructor(hypervisor: Hypervisor, clock: Clock, options: XenOptions) {
    this.#access = new XenAccess({ ...options, hypervisor, clock, role: 'device' });
    this.#hypervisor = hypervisor;
    this.#clock = clock;
  }

  async connect({ onLost, diagnosed }: DeviceAccessHandlers): Promise<GuestConnection> {
    this.#mapper ??= this.#openMapper();
    const connection = await this.#access.establish(undefined);
    const { channels, service: domid } = this.#access.reached;
    const resources = new XenResources({
      mapper: this.#mapper,
      channels,
      domid,
      poolMaxBytes: limits.poolMaxBytes * limits.peersPerBus,
      persistent: false,
      clock: this.#clock,
      diagnosed,
    });
    return new XenDeviceConnection(connection, resources, onLost);
  }

  #openMapper(): GrantMapper {
    try {
      return this.#hypervisor.openGrantMapper();
    } catch (error) {
      throw error instanceof HypervisorError ? new VmsgError('unavailable', error.message, { cause: error }) : error;
    }
  }

  close(): void {
    this.#access.close();
    this.#mapper?.close();
  }
}
