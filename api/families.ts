import type { Channel, DataPlaneSnapshot, Resource } from '../src/bridge/commands.ts';
import type { Family, Sample } from './metrics.ts';
import type { RequestCount } from './request-counts.ts';

/** What the operating system says about the process. */
export interface ProcessNumbers {
  readonly uptimeSeconds: number;
  readonly residentBytes: number;
  readonly openFds: number;
}

/** Everything that one answer of /metrics is made from. */
export interface Readings {
  readonly version: string;
  readonly ready: boolean;
  readonly domains: readonly Resource<'domains'>[];
  readonly buses: readonly Resource<'buses'>[];
  readonly dataPlane: DataPlaneSnapshot | null;
  readonly channels: readonly Channel[];
  readonly attachments: readonly Resource<'attachments'>[];
  readonly requests: Iterable<RequestCount>;
  readonly streams: { readonly count: number; readonly dropped: number; readonly droppedEvents: number };
  readonly process: ProcessNumbers;
}

/** The metrics; their labels are ids of objects, routes and words, whose number is bounded. */
export const familiesOf = (readings: Readings): Family[] => [
  ...serviceFamilies(readings),
  ...domainFamilies(readings.domains),
  ...dataPlaneFamilies(readings.dataPlane),
  ...channelFamilies(readings.channels),
  ...regionFamilies(readings.buses),
  ...attachmentFamilies(readings.attachments),
  ...apiFamilies(readings),
  ...processFamilies(readings.process),
];

type Of<T> = readonly [name: string, help: string, value: (item: T) => number | null];

const single = (name: string, help: string, value: number): Family => ({
  name,
  help,
  type: name.endsWith('_total') ? 'counter' : 'gauge',
  labels: [],
  samples: [[{}, value]],
});

/** One family a row; an item without a value has no sample. */
const table = <T>(
  items: readonly T[],
  labels: readonly string[],
  labelsOf: (item: T) => Sample[0],
  rows: readonly Of<T>[],
): Family[] =>
  rows.map(([name, help, valueIn]) => ({
    name,
    help,
    type: name.endsWith('_total') ? 'counter' : 'gauge',
    labels,
    samples: items.flatMap((item): Sample[] => {
      const value = valueIn(item);
      return value === null ? [] : [[labelsOf(item), value]];
    }),
  }));

function serviceFamilies({ version, ready, channels }: Readings): Family[] {
  const connected = channels.filter(({ state }) => state === 'connected').length;
  const info = 'Always 1; the label tells the version of the service.';
  return [
    { name: 'vmsg_info', help: info, type: 'gauge', labels: ['version'], samples: [[{ version }, 1]] },
    single('vmsg_ready', 'Whether the service can do its work.', ready ? 1 : 0),
    single('vmsg_guests_connected', 'Guests that are connected to a bus.', connected),
  ];
}

function domainFamilies(domains: readonly Resource<'domains'>[]): Family[] {
  const stuckPages = ({ status }: Resource<'domains'>) => status.stuckShares.reduce((sum, { pages }) => sum + pages, 0);
  return table(domains, ['domain'], ({ id }) => ({ domain: id }), [
    ['vmsg_domain_running', 'Whether the domain runs.', ({ status }) => (status.state === 'running' ? 1 : 0)],
    ['vmsg_domain_stuck_pages', 'Pages of other domains that it does not let go of.', stuckPages],
  ]);
}

const channelRows: readonly Of<Channel>[] = [
  ['vmsg_bus_messages_received_total', 'Messages from the guest.', ({ counters }) => counters.messagesIn],
  ['vmsg_bus_messages_sent_total', 'Messages to the guest.', ({ counters }) => counters.messagesOut],
  ['vmsg_bus_doorbells_received_total', 'Doorbells from the guest.', ({ counters }) => counters.doorbellsIn],
  ['vmsg_bus_doorbells_sent_total', 'Doorbells to the guest.', ({ counters }) => counters.doorbellsOut],
  ['vmsg_bus_malformed_total', 'Malformed messages, dropped.', ({ counters }) => counters.malformed],
  ['vmsg_bus_dropped_total', 'Messages dropped for another reason.', ({ counters }) => counters.dropped],
  ['vmsg_bus_failures_total', 'Failure events sent to the guest.', ({ counters }) => counters.failures],
  [
    'vmsg_bus_backlog_messages',
    'Messages that wait for room in the ring to the guest.',
    ({ backlogMessages }) => backlogMessages,
  ],
];

const dataPlaneFamilies = (plane: DataPlaneSnapshot | null): Family[] =>
  table(plane === null ? [] : [plane], [], () => ({}), [
    ['vmsg_data_plane_joins', 'Queues whose notifications are passed on to a program.', ({ joins }) => joins],
    ['vmsg_data_plane_events_total', 'Notifications that came.', ({ events }) => events],
    ['vmsg_data_plane_signals_total', 'Notifications passed on; several may be one.', ({ signals }) => signals],
    ['vmsg_data_plane_rounds_total', 'Times that notifications were passed on together.', ({ rounds }) => rounds],
    ['vmsg_data_plane_sleeps_total', 'Times that a thread slept until the next one.', ({ sleeps }) => sleeps],
    [
      'vmsg_data_plane_spins_paid_total',
      'Times that the next one came while a thread looked for it.',
      ({ spinsPaid }) => spinsPaid,
    ],
    ['vmsg_data_plane_spins_unpaid_total', 'Times that a thread looked in vain.', ({ spinsUnpaid }) => spinsUnpaid],
  ]);

function channelFamilies(channels: readonly Channel[]): Family[] {
  const names = ['bus', 'domain'];
  const namesOf = ({ id, domain }: Channel) => ({ bus: id, domain });
  const states = table(channels, [...names, 'state'], (channel) => ({ ...namesOf(channel), state: channel.state }), [
    ['vmsg_bus_state', 'Always 1; the label tells the state of the bus.', () => 1],
  ]);
  // A bus that is not open has counted nothing: its zeros would look like a restart.
  const open = channels.filter(({ state }) => state !== 'pending' && state !== 'failed');
  return [...states, ...table(open, names, namesOf, channelRows)];
}

const regionFamilies = (buses: readonly Resource<'buses'>[]): Family[] =>
  table(buses, ['bus', 'domain'], ({ id, spec }) => ({ bus: id, domain: spec.domain }), [
    ['vmsg_bus_regions', 'Memory regions of the guest.', ({ status }) => status.regions],
    ['vmsg_bus_region_bytes', 'Their size.', ({ status }) => status.regionBytes],
    ['vmsg_bus_regions_draining', 'Regions removed that I/O still uses.', ({ status }) => status.regionsDraining],
    ['vmsg_bus_grant_hits_total', 'Uses of a grant whose mapping was kept.', ({ status }) => grantsOf(status, 'hits')],
    ['vmsg_bus_grant_misses_total', 'Grants mapped.', ({ status }) => grantsOf(status, 'misses')],
    [
      'vmsg_bus_grant_evictions_total',
      'Kept mappings given up to stay within the bound.',
      ({ status }) => grantsOf(status, 'evictions'),
    ],
    ['vmsg_bus_grant_faults_total', 'Grants that could not be used.', ({ status }) => grantsOf(status, 'faults')],
    [
      'vmsg_bus_grant_mapped_pages',
      'Pages of grants that are mapped.',
      ({ status }) => grantsOf(status, 'mappedPages'),
    ],
  ]);

type GrantNumbers = NonNullable<Resource<'buses'>['status']['grants']>;

const grantsOf = (
  { grants }: Resource<'buses'>['status'],
  field: keyof Omit<GrantNumbers, 'persistent'>,
): number | null => (grants === null ? null : grants[field]);

function attachmentFamilies(attachments: readonly Resource<'attachments'>[]): Family[] {
  const names = ['bus', 'attachment', 'device_type'];
  const namesOf = ({ id, spec, status }: Resource<'attachments'>) => ({
    bus: spec.bus,
    attachment: id,
    device_type: status.deviceType,
  });
  const states = table(attachments, [...names, 'state'], (one) => ({ ...namesOf(one), state: one.status.state }), [
    ['vmsg_attachment_state', 'Always 1; the label tells the state of the attachment.', () => 1],
  ]);
  const attached = attachments.filter(({ status }) => status.state !== 'pending' && status.state !== 'failed');
  const inFlight = ({ status }: Resource<'attachments'>) =>
    status.queues.reduce((sum, queue) => sum + queue.inFlight, 0);
  return [
    ...states,
    ...table(attached, names, namesOf, [
      ['vmsg_attachment_requests_total', 'Requests completed.', ({ status }) => status.requests],
      ['vmsg_attachment_bytes_total', 'Bytes moved for them.', ({ status }) => status.bytes],
      ['vmsg_attachment_requests_in_flight', 'Requests taken and not yet answered.', inFlight],
    ]),
  ];
}

function apiFamilies({ requests, streams }: Readings): Family[] {
  const labelsOf = ({ method, route, status }: RequestCount) => ({ method, route, status });
  return [
    ...table([...requests], ['method', 'route', 'status'], labelsOf, [
      ['vmsg_api_requests_total', 'Calls of the API by route and class of status.', ({ count }) => count],
    ]),
    single('vmsg_api_event_streams', 'Event streams that are open.', streams.count),
    single('vmsg_api_event_streams_dropped_total', 'Event streams whose client did not read.', streams.dropped),
    single('vmsg_api_events_dropped_total', 'Events that waited for those clients.', streams.droppedEvents),
  ];
}

const processFamilies = ({ uptimeSeconds, residentBytes, openFds }: ProcessNumbers): Family[] => [
  single('process_uptime_seconds', 'Time since the process began.', uptimeSeconds),
  single('process_resident_memory_bytes', 'Memory of the process.', residentBytes),
  single('process_open_fds', 'Open file descriptors.', openFds),
];
