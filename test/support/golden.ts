import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type { CanonicalMessage } from '../../src/virtio-msg/dialect.ts';
import {
  descriptors,
  hello,
  type packetType,
  ready,
  refused,
  rings,
  welcome,
} from '../../src/virtio-msg/loopback-handshake.ts';
import type { AnyLayout } from '../../src/virtio-msg/tables.ts';

export type BodyValue = number | bigint | Uint8Array | number[];
export type Body = Record<string, BodyValue>;

/** One recorded message or packet. The bytes do not come from the encoder under test. */
export interface Vector {
  readonly name: string;
  readonly kind: 'request' | 'response' | 'event' | 'packet';
  readonly source: string;
  readonly deviceNumber: number;
  readonly token: number;
  readonly body: Body;
  readonly bytes: Uint8Array;
}

interface Recorded {
  readonly name: string;
  readonly kind: Vector['kind'];
  readonly source: string;
  readonly deviceNumber?: number;
  readonly token?: number;
  readonly body: Record<string, number | string | number[]>;
  readonly hex: string;
}

export const fromHex = (hex: string): Uint8Array => new Uint8Array(Buffer.from(hex, 'hex'));
export const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** `0x…` stands for a 64-bit number, any other string for bytes. */
function bodyValue(value: number | string | number[]): BodyValue {
  if (typeof value !== 'string') return value;
  return value.startsWith('0x') ? BigInt(value) : fromHex(value);
}

function goldenFile(name: string): string {
  for (let directory = import.meta.dirname; ; directory = path.dirname(directory)) {
    const file = path.join(directory, 'test/golden', name);
    if (existsSync(file)) return file;
    if (directory === path.dirname(directory)) throw new Error(`no test/golden/${name}`);
  }
}

function goldenVectors(name: string): Vector[] {
  const recorded = JSON.parse(readFileSync(goldenFile(name), 'utf8')) as Recorded[];
  return recorded.map(({ hex, body, deviceNumber = 0, token = 0, ...rest }) => ({
    ...rest,
    deviceNumber,
    token,
    body: Object.fromEntries(Object.entries(body).map(([key, value]) => [key, bodyValue(value)])),
    bytes: fromHex(hex),
  }));
}

export const messageVectors = (): Vector[] => [
  ...goldenVectors('virtio-msg-d5-transport.json'),
  ...goldenVectors('virtio-msg-d5-bus.json'),
];

export const packetVectors = (): Vector[] => goldenVectors('loopback-handshake.json');

export const consoleVectors = (): Vector[] => goldenVectors('virtio-console.json');

export const messageOf = ({ kind, name, body }: Vector): CanonicalMessage => ({ kind, name, body }) as never;

/** Every packet of the loopback handshake by its name. */
export const packetLayouts: Readonly<Record<keyof typeof packetType, AnyLayout>> = {
  hello,
  welcome,
  rings,
  ready,
  refused,
  descriptors,
};
