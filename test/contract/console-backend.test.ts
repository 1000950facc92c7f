import assert from 'node:assert/strict';
import { ConsoleBackend } from '../../src/bridge/backend/console.ts';
import type { Backend, BackendDescription, BackendRequest } from '../../src/ports/backend.ts';
import { EndlessEnd } from '../support/console-end.ts';
import { backendContract } from './backend-contract.ts';

/** A console of which the suite sees one queue. */
class OneQueue implements Backend {
  readonly description: BackendDescription;
  readonly #inner: ConsoleBackend;
  readonly #queue: number;

  constructor(inner: ConsoleBackend, queue: number) {
    this.description = inner.description;
    this.#inner = inner;
    this.#queue = queue;
  }

  activate(): void {
    this.#inner.activate(() => false);
  }

  handle(request: BackendRequest): void {
    // The request itself, so that it is completed as the suite made it; only its queue is another.
    this.#inner.handle(Object.defineProperty(request, 'queue', { value: this.#queue }));
  }

  cancel(queue: number): void {
    this.#inner.cancel(queue);
  }

  writeConfig(): boolean {
    return this.#inner.writeConfig();
  }

  deactivate(): void {
    this.#inner.deactivate();
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}

const host = { configChanged: () => assert.fail('no change'), failed: (reason: string) => assert.fail(reason) };
const ports = () => [
  { name: 'console', end: new EndlessEnd() },
  { name: 'data', end: new EndlessEnd() },
];

for (const [name, queue] of [
  ['receive', 0],
  ['transmit', 1],
  ['control transmit', 3],
] as const) {
  backendContract(
    `console, ${name} queue`,
    async () => new OneQueue(new ConsoleBackend(ports(), { columns: 80, rows: 24 }, host), queue),
  );
}
