import { parseArgs } from 'node:util';
import type { Channel, MessageRecord, Share } from '../../bridge/commands.ts';
import type { ApiClient } from './api-client.ts';
import { exitCode, usageError } from './exit-codes.ts';
import type { CliIo } from './io.ts';
import { peerText } from './peer-text.ts';
import { table } from './table.ts';

const print = (io: CliIo, value: unknown): void => void io.stdout.write(`${JSON.stringify(value, null, 2)}\n`);

const orDash = (value: string | number | null): string => (value === null ? '-' : String(value));

/** `vmsg channels [BUS] [--records]`. */
export async function runChannels(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { records: { type: 'boolean' }, json: { type: 'boolean' } },
  });
  const [bus, ...surplus] = positionals;
  if (surplus.length > 0) throw usageError(`unexpected argument '${surplus[0]}'`);
  if (values.records) {
    if (bus === undefined) throw usageError('--records needs the id of a bus');
    const records = await api.listAll<MessageRecord>(`channels/${encodeURIComponent(bus)}/records`);
    if (values.json) print(io, records);
    else io.stdout.write(recordTable(records));
    return exitCode.ok;
  }
  const channels =
    bus === undefined
      ? await api.listAll<Channel>('channels')
      : [(await api.call('GET', `/v1/channels/${encodeURIComponent(bus)}`)).body as Channel];
  if (values.json) print(io, bus === undefined ? channels : channels[0]);
  else io.stdout.write(channelTable(channels));
  return exitCode.ok;
}

const channelTable = (channels: readonly Channel[]): string =>
  table(
    ['CHANNEL', 'DOMAIN', 'STATE', 'EPOCH', 'PEER', 'DIALECT', 'IN', 'OUT', 'BACKLOG', 'MALFORMED', 'DROPPED'],
    channels.map(({ id, domain, state, epoch, peer, dialect, backlogMessages, counters }) => [
      id,
      domain,
      state,
      epoch,
      peerText(peer),
      orDash(dialect),
      String(counters.messagesIn),
      String(counters.messagesOut),
      orDash(backlogMessages),
      String(counters.malformed),
      String(counters.dropped),
    ]),
  );

const recordTable = (records: readonly MessageRecord[]): string =>
  table(
    ['MESSAGE', 'AGE MS', 'DIRECTION', 'KIND', 'NAME', 'DEVICE', 'TOKEN', 'BYTES'],
    records.map(({ sequence, ageMs, direction, kind, message, messageId, deviceNumber, token, sizeBytes }) => [
      String(sequence),
      ageMs.toFixed(3),
      direction,
      kind,
      message ?? `id 0x${messageId.toString(16)}`,
      orDash(deviceNumber),
      String(token),
      String(sizeBytes),
    ]),
  );

/** `vmsg shares`. */
export async function runShares(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { values } = parseArgs({ args, options: { json: { type: 'boolean' } } });
  const shares = await api.listAll<Share>('shares');
  if (values.json) print(io, shares);
  else {
    io.stdout.write(
      table(
        ['SHARE', 'BUS', 'DOMAIN', 'BYTES', 'ACCESS', 'PINS', 'STATE'],
        shares.map(({ id, bus, domain, bytes, readOnly, pins, state }) => [
          id,
          bus,
          domain,
          String(bytes),
          readOnly ? 'read' : 'read-write',
          String(pins),
          state,
        ]),
      ),
    );
  }
  return exitCode.ok;
}
