import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { configBytesPerMessage } from '../virtio-msg/transport-messages.ts';
import type { DeviceRequests } from './requests.ts';

const strictGeneration = 1;

/** The configuration space of one device, in as many messages as it takes (D5, GET_CONFIG and SET_CONFIG). */
export class ConfigSpace {
  readonly #bus: DeviceRequests;
  readonly #device: number;
  /** Bytes. */
  readonly size: number;

  constructor(bus: DeviceRequests, device: number, size: number) {
    this.#bus = bus;
    this.#device = device;
    this.size = size;
  }

  #mustFit(offset: number, length: number): void {
    if (!Number.isInteger(offset) || offset < 0 || length < 0 || offset + length > this.size) {
      throw new VmsgError('invalid-request', `config bytes ${offset}..${offset + length} of ${this.size}`);
    }
  }

  /**
   * Reads bytes that belong together: when the generation changes between two messages, all is read again.
   * @throws VmsgError 'invalid-request' outside the space, 'unavailable' when it never stands still
   */
  async read(offset: number, length: number): Promise<Uint8Array> {
    this.#mustFit(offset, length);
    for (let attempt = 0; attempt < limits.guestConfigReadAttempts; attempt++) {
      const bytes = await this.#readOnce(offset, length);
      if (bytes !== undefined) return bytes;
    }
    throw new VmsgError('unavailable', `the configuration of device ${this.#device} changes all the time`);
  }

  /** @returns undefined when the generation changed on the way */
  async #readOnce(offset: number, length: number): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(length);
    const most = configBytesPerMessage(this.#bus.terms.maxMessageSize);
    let generation: number | undefined;
    for (let at = 0; at < length; at += most) {
      const part = { offset: offset + at, length: Math.min(most, length - at) };
      const response = await this.#bus.request(this.#device, 'GET_CONFIG', part);
      if (response.offset !== part.offset || response.length !== part.length) {
        throw new VmsgError('protocol-violation', `GET_CONFIG: device ${this.#device} answered another range`);
      }
      generation ??= response.generation;
      if (response.generation !== generation) return undefined;
      bytes.set(response.data, at);
    }
    return bytes;
  }

  /** The generation count now; a read of no bytes. */
  async generation(): Promise<number> {
    return (await this.#bus.request(this.#device, 'GET_CONFIG', { offset: 0, length: 0 })).generation;
  }

  /**
   * Writes bytes; more than one message carries are not written as a whole.
   * @throws VmsgError 'invalid-request' outside the space, or when the device does not take them
   */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#mustFit(offset, bytes.length);
    const most = configBytesPerMessage(this.#bus.terms.maxMessageSize);
    for (let at = 0; at < bytes.length; at += most) {
      await this.#writePart(offset + at, bytes.subarray(at, at + most));
    }
  }

  async #writePart(offset: number, data: Uint8Array): Promise<void> {
    const strict = (this.#bus.terms.transportFeatures & strictGeneration) !== 0;
    // In the strict profile a change on the device's side rejects the write: look again, then repeat.
    for (let attempt = 0; attempt < (strict ? limits.guestConfigReadAttempts : 1); attempt++) {
      const generation = strict ? await this.generation() : 0;
      const body = { generation, offset, length: data.length, data };
      const response = await this.#bus.request(this.#device, 'SET_CONFIG', body);
      if (response.length === data.length) return;
      if (response.length !== 0) {
        throw new VmsgError('protocol-violation', `SET_CONFIG: device ${this.#device} applied a part`);
      }
    }
    throw new VmsgError('invalid-request', `device ${this.#device} does not take config bytes at ${offset}`);
  }
}
