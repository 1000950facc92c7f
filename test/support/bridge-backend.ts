import assert from 'node:assert/strict';
import type { Backend, BackendDescription, BackendHost, BackendRequest } from '../../src/ports/backend.ts';

export interface FakeBackendOptions {
  readonly featureBits?: readonly number[];
  readonly queueSizes?: readonly number[];
  readonly config?: Uint8Array;
  readonly maxInFlight?: number;
  readonly acceptConfig?: boolean;
}

/** A backend that does what the test says: it holds requests until told to complete them. */
export class FakeBackend implements Backend {
  readonly description: BackendDescription;
  /** Requests handed over and not yet completed, oldest first. */
  readonly held: BackendRequest[] = [];
  /** Completes at once, with this many written bytes. */
  automatic: number | undefined;
  acceptConfig: boolean;
  readonly log: string[] = [];
  readonly writes: { offset: number; data: Uint8Array }[] = [];
  handled = 0;
  active: ((bit: number) => boolean) | undefined;
  closed = false;
  host: BackendHost | undefined;

  constructor(options: FakeBackendOptions = {}) {
    this.acceptConfig = options.acceptConfig ?? true;
    this.description = {
      deviceType: 42,
      vendorId: 0x1234,
      uuid: Uint8Array.from({ length: 16 }, (_, i) => 0xf0 + i),
      featureBits: options.featureBits ?? [0, 5],
      queueSizes: options.queueSizes ?? [16, 8],
      config: options.config ?? Uint8Array.from({ length: 40 }, (_, i) => i + 1),
      maxInFlight: options.maxInFlight ?? 64,
    };
  }

  activate(has: (featureBit: number) => boolean): void {
    assert.equal(this.active, undefined, 'a device is activated once between resets');
    this.active = has;
    this.log.push('activate');
  }

  handle(request: BackendRequest): void {
    assert.ok(this.active !== undefined, 'requests come while the device is active');
    assert.ok(!this.closed);
    this.handled += 1;
    if (this.automatic === undefined) this.held.push(request);
    else request.complete(this.automatic);
  }

  complete(writtenBytes = 0): void {
    const request = this.held.shift();
    assert.ok(request !== undefined, 'a request is held');
    request.complete(writtenBytes);
  }

  writeConfig(offset: number, data: Uint8Array): boolean {
    this.writes.push({ offset, data: data.slice() });
    return this.acceptConfig;
  }

  deactivate(): void {
    assert.ok(this.active !== undefined, 'an active device is deactivated');
    assert.equal(this.held.length, 0, 'all requests are completed before the device is deactivated');
    this.active = undefined;
    this.log.push('deactivate');
  }

  async close(): Promise<void> {
    this.closed = true;
    this.log.push('close');
  }
}
