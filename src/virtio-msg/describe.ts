import { decode, Malformed } from '../wire/layout.ts';
import { type Dialect, headerFault } from './dialect.ts';
import { headerBytes, messageHeader, typeBus, typeResponse } from './header.ts';

const hex = (data: Uint8Array, most = 32): string => {
  const shown = Buffer.from(data.buffer, data.byteOffset, Math.min(data.length, most)).toString('hex');
  return data.length > most ? `${shown}… (${data.length} bytes)` : shown;
};

function words(list: readonly number[], most = 8): string {
  const shown = list.slice(0, most).map((word) => `0x${word.toString(16).padStart(8, '0')}`);
  return `[${shown.join(' ')}${list.length > most ? `… (${list.length} words)` : ''}]`;
}

function value(v: unknown): string {
  if (typeof v === 'bigint') return `0x${v.toString(16)}`;
  if (v instanceof Uint8Array) return v.length === 0 ? '-' : hex(v);
  if (Array.isArray(v)) return words(v);
  return String(v);
}

/** One line about any frame for a person: `GET_CONFIG response dev 3 token 17: generation=1 offset=0 …`. */
export function describe(frame: Uint8Array, dialect: Dialect): string {
  const header = decode(messageHeader, frame.subarray(0, headerBytes), 0, Math.min(frame.length, headerBytes));
  if (header instanceof Malformed) return `malformed: ${header.reason}; ${hex(frame)}`;
  const fault = headerFault(header, frame.length, 0xffff);
  if (fault !== undefined) return `malformed: ${fault}; ${hex(frame)}`;
  const where = header.type & typeBus ? 'bus' : `dev ${header.deviceNumber}`;
  const kind = header.type & typeResponse ? 'response' : 'message';
  const message = dialect.decode(frame, header);
  if (message instanceof Malformed) {
    const name = dialect.nameOf(header.type, header.id) ?? `id 0x${header.id.toString(16)}`;
    return `${name} ${kind} ${where} token ${header.token}: malformed: ${message.reason}; ${hex(frame)}`;
  }
  const body = Object.entries(message.body as Record<string, unknown>)
    .filter(([key]) => key !== 'reserved')
    .map(([key, v]) => `${key}=${value(v)}`);
  const token = message.kind === 'event' ? '' : ` token ${header.token}`;
  return `${message.name} ${message.kind} ${where}${token}${body.length > 0 ? `: ${body.join(' ')}` : ''}`;
}
