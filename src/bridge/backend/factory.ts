import type { Backend, BackendHost } from '../../ports/backend.ts';
import type { LaneBackendSpec } from '../lane/protocol.ts';

/** Backends that run in the lane; the others are reached by messages. */
export type LocalBackendType = Exclude<LaneBackendSpec['type'], 'guest' | 'bridge'>;

/** Opens one kind of backend. Rejects with VmsgError `backend-unusable` and leaves nothing open. */
export type BackendFactory<T extends LocalBackendType = LocalBackendType> = (
  spec: Extract<LaneBackendSpec, { type: T }>,
  host: BackendHost,
) => Promise<Backend>;

export type BackendFactories = { readonly [T in LocalBackendType]: BackendFactory<T> };

/** Stands for the device until it exists; a backend may report before its device is attached. */
export class LateBackendHost implements BackendHost {
  #target: BackendHost | undefined;
  #failure: string | undefined;

  bind(target: BackendHost): void {
    this.#target = target;
    if (this.#failure !== undefined) target.failed(this.#failure);
  }

  configChanged(offset: number, data: Uint8Array): void {
    this.#target?.configChanged(offset, data);
  }

  failed(reason: string): void {
    if (this.#target === undefined) this.#failure = reason;
    else this.#target.failed(reason);
  }
}
