import type { ApiClient } from '../../../src/app/cli/api-client.ts';
import type { ServiceEvent } from '../../../src/bridge/events.ts';

/** Follows the event stream of a service until that ends. */
export class Events {
  readonly #seen: ServiceEvent[] = [];

  constructor(api: ApiClient) {
    this.#follow(api).catch(() => {
      // The service was ended.
    });
  }

  async #follow(api: ApiClient): Promise<void> {
    for await (const event of api.events()) this.#seen.push(event as ServiceEvent);
  }

  /** What one field of the events of a type and an object said, from the beginning. */
  texts(type: ServiceEvent['type'], object: string, field: string): string[] {
    return this.#seen
      .filter((event) => event.type === type && event.object === object)
      .map(({ data }) => String(data[field]));
  }
}
