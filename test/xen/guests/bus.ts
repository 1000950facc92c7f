import { connectXen, type GuestBus } from '../../../src/guest/index.ts';

/** Between two requests: a domU that never rests leaves little of the one processor to the others. */
export const pauseMs = 10;

/** How a guest program uses its bus; what every test says to it, as JSON. */
export interface BusOrder {
  /** Regions that are granted once, or every buffer by its own grants. */
  readonly memory: 'pool' | 'grants';
  /** Grants: whether the service may keep mappings. */
  readonly persistent?: boolean;
  /** Pool: bytes of the first region. */
  readonly memoryBytes?: number;
  /** Time in which to connect again when the service is gone. */
  readonly reconnectMs?: number;
}

/** What the test wants: the one argument of the program. */
export const orderOf = <T>(): T => JSON.parse(process.argv[2] ?? '{}') as T;

/** One line for the test. */
export function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

export const untilStopped = (): Promise<void> => new Promise((resolve) => void process.once('SIGTERM', resolve));

export function openBus({ memory, persistent, memoryBytes, reconnectMs }: BusOrder): Promise<GuestBus> {
  return connectXen({
    memory,
    ...(persistent === undefined ? {} : { persistent }),
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
    ...(reconnectMs === undefined ? {} : { reconnect: { totalMs: reconnectMs } }),
  });
}
