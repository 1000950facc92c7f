import { parseArgs } from 'node:util';
import type { Resource } from '../../bridge/commands.ts';
import type { ApiClient } from './api-client.ts';
import { exitCode, usageError } from './exit-codes.ts';
import type { CliIo } from './io.ts';
import { objectCommands, remove } from './objects.ts';
import { table } from './table.ts';

/** `vmsg ls`: buses and what is attached to them. */
export async function runLs(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { values } = parseArgs({ args, options: { json: { type: 'boolean' } } });
  const buses = await api.listAll<Resource<'buses'>>('buses');
  const attachments = await api.listAll<Resource<'attachments'>>('attachments');
  if (values.json) {
    io.stdout.write(`${JSON.stringify({ buses, attachments }, null, 2)}\n`);
    return exitCode.ok;
  }
  const { bus, attachment } = objectCommands;
  io.stdout.write(`${table(bus.header, buses.map(bus.row))}\n`);
  io.stdout.write(table(attachment.header, attachments.map(attachment.row)));
  return exitCode.ok;
}

/** `vmsg detach ATTACHMENT`. */
export async function runDetach(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { positionals } = parseArgs({ args, allowPositionals: true });
  const [id, ...surplus] = positionals;
  if (id === undefined || surplus.length > 0) throw usageError('vmsg detach takes the id of an attachment');
  await remove('attachments', id, api, io);
  return exitCode.ok;
}

interface EventData {
  readonly time: string;
  readonly type: string;
  readonly kind: string;
  readonly object: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** `vmsg events`: one line an event until the service ends. */
export async function runEvents(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { values } = parseArgs({ args, options: { json: { type: 'boolean' } } });
  for await (const value of api.events()) {
    const { time, type, kind, object, data } = value as EventData;
    const facts = Object.entries(data).map(
      ([key, fact]) => `${key}=${typeof fact === 'object' ? JSON.stringify(fact) : String(fact)}`,
    );
    io.stdout.write(
      values.json ? `${JSON.stringify(value)}\n` : `${time}  ${type}  ${kind}/${object}  ${facts.join(' ')}\n`,
    );
  }
  return exitCode.ok;
}
