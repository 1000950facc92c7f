import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import {
  consoleConfig,
  consoleControl,
  consoleControlQueues,
  consoleEvent,
  consoleReceiveQueue,
  consoleResize,
} from '../virtio/console.ts';
import { deviceId } from '../virtio/device-ids.ts';
import { consoleFeature, FeatureSet } from '../virtio/features.ts';
import { type Decoded, decode, encode, Malformed } from '../wire/layout.ts';
import type { GuestBuffer } from './buffer.ts';
import type { GuestBus } from './bus.ts';
import { ConsolePort } from './console-port.ts';
import { VirtioDevice } from './device.ts';
import { Emitter } from './emitter.ts';
import type { QueueOptions, RingOptions, VirtQueue } from './queue.ts';
import { Slots } from './slots.ts';

export interface ConsoleOptions extends Omit<QueueOptions, 'size'>, RingOptions {
  /** Buffers of each port for each direction, 1 to 64; 8 by default. */
  readonly buffers?: number;
  /** Bytes of each; 4096 by default. */
  readonly bufferBytes?: number;
}

/** In characters. */
export interface ConsoleSize {
  readonly columns: number;
  readonly rows: number;
}

export interface ConsoleEvents {
  /** The device announced a port. */
  port: ConsolePort;
  /** The device took a port away. */
  removed: { readonly port: number };
  resized: ConsoleSize;
  /** See `DeviceEvents.failed`. */
  failed: VmsgError;
}

interface PortQueues {
  readonly receive: VirtQueue;
  readonly transmit: VirtQueue;
}

interface Waiter {
  readonly port: number;
  readonly resolve: (port: ConsolePort) => void;
  readonly reject: (error: Error) => void;
}

const wanted = FeatureSet.of(consoleFeature.SIZE, consoleFeature.MULTIPORT);
const buffersMax = 64;
const controlBuffers = 16;
const controlBytes = 256;

/**
 * Driver of a console device (virtio 1.3, 5.3). With MULTIPORT the device announces its ports one by one; without it
 * there is port 0 alone, which is always open.
 */
export class ConsoleDriver extends Emitter<ConsoleEvents> {
  readonly device: VirtioDevice;
  readonly #queues: readonly PortQueues[];
  readonly #control: { readonly receive: VirtQueue; readonly transmit: VirtQueue } | undefined;
  readonly #options: Required<Pick<ConsoleOptions, 'buffers' | 'bufferBytes'>>;
  /** By port. */
  readonly #memory: ReadonlyArray<readonly GuestBuffer[]>;
  /** Made when first announced; one that was taken away comes back as itself. */
  readonly #known = new Map<number, ConsolePort>();
  readonly #ports = new Map<number, ConsolePort>();
  readonly #messages: Slots<GuestBuffer>;
  #waiters: Waiter[] = [];
  #size: ConsoleSize | undefined;
  #closed = false;

  private constructor(
    device: VirtioDevice,
    queues: readonly PortQueues[],
    control: PortQueues | undefined,
    options: Required<Pick<ConsoleOptions, 'buffers' | 'bufferBytes'>>,
  ) {
    super();
    this.device = device;
    this.#queues = queues;
    this.#control = control;
    this.#options = options;
    // All at once: when memory is short, `open` says so.
    const { buffers, bufferBytes } = options;
    this.#memory = queues.map(() => Array.from({ length: 2 * buffers }, () => device.alloc(bufferBytes)));
    const memory = control === undefined ? undefined : device.alloc(controlBuffers * consoleControl.size);
    const slots = memory === undefined ? 0 : controlBuffers;
    this.#messages = new Slots(
      Array.from({ length: slots }, (_, i) => memory!.slice(i * consoleControl.size, consoleControl.size)),
    );
    device.on('config', () => {
      this.#readSize().catch(() => {
        // The device has failed, which 'failed' tells; or the next change tells.
      });
    });
    device.on('failed', (error) => {
      this.#end(error);
      this.emit('failed', error);
    });
  }

  /**
   * Takes console device `number` of a bus and makes it ready.
   * @throws VmsgError 'invalid-request' when it is no console; else as `VirtioDevice.open`
   */
  static async open(bus: GuestBus, number: number, options: ConsoleOptions = {}): Promise<ConsoleDriver> {
    const { buffers = 8, bufferBytes = 4096, packed = false, inOrder = false, ...queueOptions } = options;
    if (!(buffers >= 1 && buffers <= buffersMax) || bufferBytes < 1) {
      throw new VmsgError('invalid-request', `${buffers} buffers of ${bufferBytes} bytes are not possible`);
    }
    const device = await VirtioDevice.open(bus, number, { type: deviceId.console, features: wanted, packed, inOrder });
    try {
      const multiport = device.features.has(consoleFeature.MULTIPORT);
      const count = multiport ? await portCount(device) : 1;
      const pair = async (receive: number, size: number): Promise<PortQueues> => ({
        receive: await device.addQueue(receive, { ...queueOptions, size }),
        transmit: await device.addQueue(receive + 1, { ...queueOptions, size }),
      });
      const queues: PortQueues[] = [];
      const size = 2 ** Math.ceil(Math.log2(buffers));
      for (let port = 0; port < count; port++) queues.push(await pair(consoleReceiveQueue(port), size));
      const control = multiport ? await pair(consoleControlQueues.receive, controlBuffers) : undefined;
      const driver = new ConsoleDriver(device, queues, control, { buffers, bufferBytes });
      await driver.#start();
      return driver;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  async #start(): Promise<void> {
    await this.#readSize();
    await this.device.start();
    const control = this.#control;
    if (control === undefined) {
      this.#add(0);
      return;
    }
    const memory = this.device.alloc(controlBuffers * controlBytes);
    for (let i = 0; i < controlBuffers; i++)
      this.#listen(control.receive, memory.slice(i * controlBytes, controlBytes));
    await this.#send(0, consoleEvent.DEVICE_READY, 1);
  }

  /** The ports that are there now, by id. */
  get ports(): ReadonlyMap<number, ConsolePort> {
    return this.#ports;
  }

  /** Whether the device can have several ports, and tells whether the host side of each is open. */
  get multiport(): boolean {
    return this.#control !== undefined;
  }

  /** Size of the console; undefined where the device does not tell. */
  get size(): ConsoleSize | undefined {
    return this.#size;
  }

  /**
   * A port, as soon as the device has announced it.
   * @throws VmsgError 'not-found' when the device cannot have it; what ended the device
   */
  async port(id: number): Promise<ConsolePort> {
    if (this.device.failure !== undefined) throw this.device.failure;
    const port = this.#ports.get(id);
    if (port !== undefined) return port;
    if (!(id >= 0 && id < this.#queues.length)) {
      throw new VmsgError('not-found', `device ${this.device.info.number} has no port ${id}`);
    }
    if (this.#waiters.length >= limits.guestQueueWaiters) throw new VmsgError('limit-reached', 'too many wait');
    return await new Promise((resolve, reject) => this.#waiters.push({ port: id, resolve, reject }));
  }

  /** Gives the device a buffer for a control message, and again after each. */
  #listen(queue: VirtQueue, buffer: GuestBuffer): void {
    queue.submit([], [buffer]).then(
      (length) => {
        if (this.device.failure !== undefined) return;
        // A copy: the device could change it after a check.
        this.#onMessage(new Uint8Array(buffer.bytes.subarray(0, length)));
        this.#listen(queue, buffer);
      },
      () => {
        // The device has failed, and says so by itself.
      },
    );
  }

  #onMessage(bytes: Uint8Array): void {
    const message = decode(consoleControl, bytes, 0, bytes.length, 'ignore');
    // What makes no sense is ignored; nothing depends on an answer.
    if (message instanceof Malformed || message.id >= this.#queues.length) return;
    const { id, event, value } = message;
    if (event === consoleEvent.DEVICE_ADD) {
      this.#tell(this.#onAdd(id));
      return;
    }
    const port = this.#ports.get(id);
    if (port === undefined) return;
    const tail = bytes.subarray(consoleControl.size);
    if (event === consoleEvent.DEVICE_REMOVE) this.#onRemove(port);
    else if (event === consoleEvent.CONSOLE_PORT) port.setConsole();
    else if (event === consoleEvent.PORT_OPEN) port.setHostOpen(value === 1);
    else if (event === consoleEvent.PORT_NAME) port.setName(nameIn(tail));
    else if (event === consoleEvent.RESIZE && port.isConsole) this.#onResize(tail);
  }

  /** Also for a port that is there: a restarted service announces all of them again. */
  async #onAdd(id: number): Promise<void> {
    const again = this.#known.has(id);
    const port = this.#add(id);
    await this.#send(id, consoleEvent.PORT_READY, 1);
    if (again) await port.retell();
  }

  #add(id: number): ConsolePort {
    const there = this.#ports.get(id);
    if (there !== undefined) return there;
    const port = this.#known.get(id) ?? this.#make(id);
    this.#known.set(id, port);
    this.#ports.set(id, port);
    const waiting = this.#waiters.filter((waiter) => waiter.port === id);
    this.#waiters = this.#waiters.filter((waiter) => waiter.port !== id);
    for (const { resolve } of waiting) resolve(port);
    this.emit('port', port);
    return port;
  }

  #make(id: number): ConsolePort {
    const tellOpen =
      this.#control === undefined ? undefined : (open: boolean) => this.#send(id, consoleEvent.PORT_OPEN, open ? 1 : 0);
    return new ConsolePort({ id, ...this.#queues[id]!, ...this.#options, memory: this.#memory[id]!, tellOpen });
  }

  #onRemove(port: ConsolePort): void {
    this.#ports.delete(port.id);
    port.setHostOpen(false);
    this.emit('removed', { port: port.id });
  }

  #onResize(tail: Uint8Array): void {
    const size = decode(consoleResize, tail, 0, tail.length, 'ignore');
    if (!(size instanceof Malformed)) this.#setSize(size);
  }

  #setSize({ cols, rows }: Decoded<typeof consoleResize>): void {
    const before = this.#size;
    if (before?.columns === cols && before.rows === rows) return;
    this.#size = { columns: cols, rows };
    if (before !== undefined) this.emit('resized', this.#size);
  }

  async #readSize(): Promise<void> {
    if (this.device.features.has(consoleFeature.SIZE)) this.#setSize(await readConfig(this.device));
  }

  /** For messages that nobody waits for: a device that fails says so by itself. */
  #tell(sent: Promise<void>): void {
    sent.catch(() => {});
  }

  async #send(id: number, event: number, value: number): Promise<void> {
    const slot = await this.#messages.take();
    encode(consoleControl, { id, event, value }, slot.bytes);
    await this.#control!.transmit.submit([slot], []);
    this.#messages.give(slot);
  }

  #end(error: VmsgError): void {
    this.#messages.end(error);
    for (const port of this.#known.values()) port.fail(error);
    for (const { reject } of this.#waiters.splice(0)) reject(error);
  }

  /** Resets the device; what waits ends with 'bus-lost'. Never rejects. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#end(new VmsgError('bus-lost', `device ${this.device.info.number} was closed`));
    await this.device.close();
  }
}

/** UTF-8; what is no printable character shows as `?`. */
const nameIn = (bytes: Uint8Array): string =>
  new TextDecoder().decode(bytes).replace(/\0+$/, '').replace(/\p{C}/gu, '?');

async function readConfig(device: VirtioDevice): Promise<Decoded<typeof consoleConfig>> {
  // A device without later features may have a shorter space: what is missing reads as zero.
  const bytes = new Uint8Array(consoleConfig.size);
  bytes.set(await device.config.read(0, Math.min(device.config.size, consoleConfig.size)));
  return decode(consoleConfig, bytes, 0, bytes.length) as Decoded<typeof consoleConfig>;
}

/** As many as there are queues for, at most: the rest of what the device says is not used. */
async function portCount(device: VirtioDevice): Promise<number> {
  const { maxPorts } = await readConfig(device);
  const most = Math.min(limits.consolePortsMax, Math.floor((device.info.maxVirtqueues - 2) / 2));
  if (maxPorts < 1 || most < 1) {
    throw new VmsgError('protocol-violation', `device ${device.info.number} has no room for a port`);
  }
  return Math.min(maxPorts, most);
}
