import { limits } from '../../kit/limits.ts';
import type { Backend, BackendDescription, BackendRequest } from '../../ports/backend.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { encode, layout, u32 } from '../../wire/layout.ts';
import { gather, scatter } from './parts.ts';
import { bridgeVendorId } from './vendor.ts';

/** The configuration space: what a driver has to know before its first request. */
const templateConfig = layout('template_config', 'docs/backend-guide.md', 4, {
  textMaxBytes: u32(0, 'longest name that a request may carry'),
});

/**
 * The least that a device is, to be copied by those who write one: a request carries a name, the answer greets it.
 * docs/backend-guide.md goes through it line by line.
 */
export class TemplateBackend implements Backend {
  readonly description: BackendDescription;
  readonly #greeting: string;

  constructor(greeting: string) {
    this.#greeting = greeting;
    const config = new Uint8Array(templateConfig.size);
    encode(templateConfig, { textMaxBytes: limits.templateTextMaxBytes }, config);
    this.description = {
      deviceType: deviceId.template,
      vendorId: bridgeVendorId,
      uuid: new Uint8Array(16),
      featureBits: [],
      queueSizes: [16],
      config,
      maxInFlight: 16,
    };
  }

  activate(): void {}

  handle(request: BackendRequest): void {
    // The guest may change its memory at any time: one copy, of a bounded size, and only the copy counts.
    const short = request.readableBytes <= limits.templateTextMaxBytes;
    const name = short ? gather(request.readable, request.readableBytes) : undefined;
    if (name === undefined) {
      request.complete(0);
      return;
    }
    const answer = new TextEncoder().encode(`${this.#greeting}, ${new TextDecoder().decode(name)}!`);
    request.complete(scatter(answer, request.writable));
  }

  writeConfig(): boolean {
    return false;
  }

  deactivate(): void {}

  async close(): Promise<void> {}
}
