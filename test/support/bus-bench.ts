import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BusAccess } from '../../src/guest/access.ts';
import { type BusOptions, GuestBus, type TransportFactory } from '../../src/guest/index.ts';
import type { GuestTransport } from '../../src/guest/transport.ts';
import type { BusService } from './bus-service.ts';

export interface BusGuestOptions {
  /** How the devices reach its memory: one of the implementation's ways, the first by default. */
  readonly memory?: string;
  /** Rings of at most `fewSlotsMax` messages. */
  readonly fewSlots?: boolean;
  readonly maxMessageSize?: number;
  readonly reconnect?: boolean;
  readonly clock?: BusOptions['clock'];
}

/** Messages that a ring made with `fewSlots` holds at most. */
export const fewSlotsMax = 16;

/** A process that uses a bus. */
export interface BusGuest {
  readonly bus: GuestBus;
  /** Sends bytes that the guest library would not send. */
  inject(frame: Uint8Array): void;
  /** Without a chance to take leave. What waits in the library ends afterwards. */
  kill(): void;
}

/** One bus with the real service on one side and the guest library on the other. */
export interface BusBench {
  readonly service: BusService;
  /** A new process of the guest connects; its first region, if it has regions, is of 1 MiB. */
  connect(options?: BusGuestOptions): Promise<BusGuest>;
  /** What both sides have open, in words. */
  readonly held: () => string;
  /** Ends both sides, and fails when something stays open. */
  close(): Promise<void>;
}

export interface BusBenchOptions {
  /** Largest message of the service, 264 bytes by default. */
  readonly maxMessageSizeBytes?: number;
}

/** An implementation of the bus, with the properties in which buses may differ. */
export interface BusImplementation {
  readonly name: string;
  /** Names of the ways in which devices reach a guest's memory. */
  readonly memories: readonly string[];
  /** How queues are notified: by messages, or by signals of their own. */
  readonly notifications: readonly ('messages' | 'own')[];
  /** What becomes of a guest that finds another one connected: it is sent away at once, or waits for a while. */
  readonly secondGuest: 'refused' | 'waits';
  /** What the service says of a guest that closed its bus, and of one that was killed. */
  readonly endings: { readonly closed: RegExp; readonly killed: RegExp };
  make(options?: BusBenchOptions): Promise<BusBench>;
}

/** Opens a bus, and keeps hold of its present connection. */
export async function openGuest(access: BusAccess, options: BusOptions): Promise<Pick<BusGuest, 'bus' | 'inject'>> {
  let transport: GuestTransport | undefined;
  const usual = access.connect;
  const connect: TransportFactory = async (resume, onTerms) => {
    transport = await usual(resume, onTerms);
    return transport;
  };
  const bus = await GuestBus.open(Object.assign(access, { connect }), options);
  const inject = (frame: Uint8Array): void => assert.equal(transport?.sendFrame(frame), 'sent');
  return { bus, inject };
}

/** Runs a test with the service started; in the end nothing of either side may be left. */
export async function withBus(
  implementation: BusImplementation,
  run: (bench: BusBench) => Promise<void>,
  options?: BusBenchOptions,
): Promise<void> {
  const bench = await implementation.make(options);
  try {
    await run(bench);
  } catch (error) {
    // What failed says more than what it left open.
    await bench.close().catch(() => {});
    throw error;
  }
  await bench.close();
}

const releaseWaitMaxMs = 8_000;

/** Waits until nothing is open but what was `before`. Looks seldom: to count what is open takes long in an emulator. */
export async function released(held: () => string, before: string): Promise<void> {
  for (let waitMs = 4; waitMs < releaseWaitMaxMs && held() !== before; waitMs *= 2) await sleep(waitMs);
  assert.equal(held(), before, 'nothing else is open');
}

export const blockBytes = 4096;
/** Options of a disk driver: one request a block, as VersionedLoad writes them. */
export const blockwise = { transferBytes: blockBytes, depth: 8 } as const;

export const serviceCounters = ({ service }: BusBench) => service.runtime.snapshot().counters;

/** Neither side met a message that it could not use. */
export function nothingStrange(bench: BusBench, bus: GuestBus): void {
  const { malformed, dropped } = bus.statistics;
  assert.deepEqual({ malformed, dropped }, { malformed: 0, dropped: 0 }, 'at the guest');
  const { malformed: badIn, dropped: lostIn, failures } = serviceCounters(bench);
  assert.deepEqual({ badIn, lostIn, failures }, { badIn: 0, lostIn: 0, failures: 0 }, 'at the service');
}
