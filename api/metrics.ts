import { Counter, Gauge, Registry } from 'prom-client';

/** One number with the values of its labels. */
export type Sample = readonly [labels: Readonly<Record<string, string>>, value: number];

/** A metric with all its samples; the names of their labels are the same. */
export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge';
  readonly labels: readonly string[];
  readonly samples: readonly Sample[];
}

export const metricsType = Registry.PROMETHEUS_CONTENT_TYPE;

/** The Prometheus text format. Each text has a registry of its own: nothing lives longer than one answer. */
export async function metricsText(families: readonly Family[]): Promise<string> {
  const registry = new Registry();
  for (const { name, help, type, labels, samples } of families) {
    const config = { name, help, labelNames: [...labels], registers: [registry] };
    if (type === 'counter') {
      const counter = new Counter(config);
      for (const [values, value] of samples) counter.inc({ ...values }, value);
    } else {
      const gauge = new Gauge(config);
      for (const [values, value] of samples) gauge.set({ ...values }, value);
    }
  }
  return await registry.metrics();
}
