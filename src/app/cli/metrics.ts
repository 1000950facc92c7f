import { parseArgs } from 'node:util';
import type { ApiClient } from './api-client.ts';
import { exitCode } from './exit-codes.ts';
import type { CliIo } from './io.ts';
import { table } from './table.ts';

interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** `vmsg metrics`: the numbers of /metrics that people look at; all of them with `--json`. */
export async function runMetrics(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { values } = parseArgs({ args, options: { json: { type: 'boolean' } } });
  const samples = samplesOf(await api.text('/metrics'));
  if (values.json) io.stdout.write(`${JSON.stringify(samples, null, 2)}\n`);
  else io.stdout.write([busTable(samples), attachmentTable(samples), totalTable(samples)].join('\n'));
  return exitCode.ok;
}

const escapes: Readonly<Record<string, string>> = { '\\n': '\n', '\\"': '"', '\\\\': '\\' };

/** Reads the text format of Prometheus, as far as the service writes it. */
function samplesOf(text: string): Sample[] {
  return text.split('\n').flatMap((line): Sample[] => {
    const [, name, labels = '', value] = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined) return [];
    const pairs = [...labels.matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, quoted]) => [
      key,
      quoted?.replace(/\\./g, (pair) => escapes[pair] ?? pair),
    ]);
    return [{ name, labels: Object.fromEntries(pairs) as Record<string, string>, value: Number(value) }];
  });
}

type Column = readonly [title: string, metric: string];

const busColumns: readonly Column[] = [
  ['IN', 'vmsg_bus_messages_received_total'],
  ['OUT', 'vmsg_bus_messages_sent_total'],
  ['MALFORMED', 'vmsg_bus_malformed_total'],
  ['DROPPED', 'vmsg_bus_dropped_total'],
  ['FAILURES', 'vmsg_bus_failures_total'],
  ['REGIONS', 'vmsg_bus_regions'],
  ['BYTES', 'vmsg_bus_region_bytes'],
  ['GRANT PAGES', 'vmsg_bus_grant_mapped_pages'],
  ['HITS', 'vmsg_bus_grant_hits_total'],
  ['MISSES', 'vmsg_bus_grant_misses_total'],
  ['FAULTS', 'vmsg_bus_grant_faults_total'],
];

const busTable = (samples: readonly Sample[]): string =>
  rowsByLabel(samples, 'vmsg_bus_state', ['bus', 'domain', 'state'], 'bus', busColumns);

const attachmentColumns: readonly Column[] = [
  ['REQUESTS', 'vmsg_attachment_requests_total'],
  ['BYTES', 'vmsg_attachment_bytes_total'],
  ['IN FLIGHT', 'vmsg_attachment_requests_in_flight'],
];

const attachmentTable = (samples: readonly Sample[]): string =>
  rowsByLabel(
    samples,
    'vmsg_attachment_state',
    ['attachment', 'bus', 'device_type', 'state'],
    'attachment',
    attachmentColumns,
  );

/** One row for each sample of a state metric: its labels, then the other metrics with the same label `key`. */
function rowsByLabel(
  samples: readonly Sample[],
  state: string,
  labels: readonly string[],
  key: string,
  columns: readonly Column[],
): string {
  const values = new Map(samples.map(({ name, labels: own, value }) => [`${name} ${own[key]}`, value]));
  const rows = samples
    .filter(({ name }) => name === state)
    .map(({ labels: own }) => [
      ...labels.map((label) => own[label] ?? '-'),
      ...columns.map(([, metric]) => String(values.get(`${metric} ${own[key]}`) ?? '-')),
    ]);
  const titles = labels.map((label) => label.replace('device_', '').toUpperCase());
  return table([...titles, ...columns.map(([title]) => title)], rows);
}

const totals: readonly Column[] = [
  ['guests connected', 'vmsg_guests_connected'],
  ['calls of the API', 'vmsg_api_requests_total'],
  ['event streams', 'vmsg_api_event_streams'],
  ['event streams dropped', 'vmsg_api_event_streams_dropped_total'],
  ['resident bytes', 'process_resident_memory_bytes'],
  ['open file descriptors', 'process_open_fds'],
  ['uptime in seconds', 'process_uptime_seconds'],
];

function totalTable(samples: readonly Sample[]): string {
  const sum = (metric: string) =>
    samples.filter(({ name }) => name === metric).reduce((total, { value }) => total + value, 0);
  return table(
    ['SERVICE', ''],
    totals.map(([title, metric]) => [title, String(sum(metric))]),
  );
}
