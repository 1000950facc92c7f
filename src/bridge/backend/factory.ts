import type { RingBackend } from '../../device/queue-engine.ts';
import type { Backend, BackendHost } from '../../ports/backend.ts';
import type { LaneBackendSpec } from '../lane/protocol.ts';
import type { DirectWay } from './vhost-user/data-path.ts';

/** Backends that run in the lane; the others are reached by messages. */
export type LocalBackendType = Exclude<LaneBackendSpec['type'], 'guest' | 'bridge'>;

/** Opens one kind of backend. Rejects with VmsgError `backend-unusable` and leaves nothing open. */
export type BackendFactory<T extends LocalBackendType = LocalBackendType> = (
  spec: Extract<LaneBackendSpec, { type: T }>,
  host: BackendHost,
  attachment: AttachmentHooks,
) => Promise<Backend | RingBackend>;

/** What a backend may tell of its attachment, and what it told when it was opened before. */
export interface AttachmentHooks {
  /** A backend that could not be opened for now can be. */
  readonly onReady: () => void;
  readonly directWay: DirectWay;
}

export type BackendFactories = { readonly [T in LocalBackendType]: BackendFactory<T> };

/** Stands for the device until it exists; a backend may report before its device is attached. */
export class LateBackendHost implements BackendHost {
  readonly #onGone: (reason: string) => void;
  #target: BackendHost | undefined;
  #failure: string | undefined;
  #away: string | null = null;
  #gone: string | undefined;

  /** @param onGone told after `bind` */
  constructor(onGone: (reason: string) => void) {
    this.#onGone = onGone;
  }

  bind(target: BackendHost): void {
    this.#target = target;
    if (this.#failure !== undefined) target.failed(this.#failure);
    if (this.#away !== null) target.away?.(this.#away);
    if (this.#gone !== undefined) this.#onGone(this.#gone);
  }

  configChanged(offset: number, data: Uint8Array): void {
    this.#target?.configChanged(offset, data);
  }

  failed(reason: string): void {
    if (this.#target === undefined) this.#failure = reason;
    else this.#target.failed(reason);
  }

  away(reason: string | null): void {
    this.#away = reason;
    this.#target?.away?.(reason);
  }

  gone(reason: string): void {
    this.#gone = reason;
    if (this.#target !== undefined) this.#onGone(reason);
  }
}
