export interface RequestCount {
  readonly method: string;
  /** Pattern of the route, such as `/v1/buses/:id`; `none` for what no route takes. */
  readonly route: string;
  /** `2xx`, `4xx` and so on. */
  readonly status: string;
  readonly count: number;
}

/** How often each route was called. As many rows as there are routes, methods and classes: no client can add any. */
export class RequestCounts {
  readonly #rows = new Map<string, { -readonly [K in keyof RequestCount]: RequestCount[K] }>();

  /** @param route undefined for what no route takes; its method is not told either, clients choose it */
  add(method: string, route: string | undefined, statusCode: number): void {
    const status = `${Math.trunc(statusCode / 100)}xx`;
    const labels = route === undefined ? { method: 'any', route: 'none', status } : { method, route, status };
    const key = Object.values(labels).join(' ');
    const row = this.#rows.get(key) ?? { ...labels, count: 0 };
    row.count += 1;
    this.#rows.set(key, row);
  }

  rows(): Iterable<RequestCount> {
    return this.#rows.values();
  }
}
