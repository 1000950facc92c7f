import { createHash } from 'node:crypto';
import type { LaneAttachSpec } from '../lane/protocol.ts';

const deviceNumberMax = 0xffff;

/** Who a device is across restarts: its attachment and what backs it. */
export const identityOf = (spec: LaneAttachSpec): Uint8Array =>
  createHash('sha256')
    .update(JSON.stringify([spec.attachment, spec.backend]))
    .digest();

const recordSuffix = (identity: Uint8Array): string => `-${Buffer.from(identity.subarray(0, 8)).toString('hex')}`;

/** Marks records of devices that another guest serves: after a restart they come a little later than others. */
const servedMark = '-served';

/** Name of a device's record in the recovery store. @param served another guest serves the device */
export const recordName = (number: number, identity: Uint8Array, served: boolean): string =>
  `device-${number}${recordSuffix(identity)}${served ? servedMark : ''}`;

export const isServedRecord = (name: string): boolean => name.endsWith(servedMark);

function recordNumber(name: string): number | undefined {
  const match = /^device-(\d+)-/.exec(name);
  return match === null ? undefined : Number(match[1]);
}

/**
 * The number wanted; else the one that the device had before a restart; else the lowest that neither was used
 * in this epoch nor waits for its device, nor is reserved for another attachment.
 * @param records names in the recovery store. @returns undefined when the wanted one is taken, or none is left
 */
export function chooseDeviceNumber(
  wanted: number | undefined,
  identity: Uint8Array,
  present: ReadonlyMap<number, unknown>,
  used: ReadonlySet<number>,
  records: readonly string[],
  reserved: readonly number[],
): number | undefined {
  if (wanted !== undefined) return present.has(wanted) ? undefined : wanted;
  const own = records.find((name) => name.replace(servedMark, '').endsWith(recordSuffix(identity)));
  const former = own === undefined ? undefined : recordNumber(own);
  if (former !== undefined && !present.has(former)) return former;
  const kept = new Set([...records.map(recordNumber), ...reserved]);
  for (let number = 0; number <= deviceNumberMax; number++) {
    if (!used.has(number) && !kept.has(number)) return number;
  }
  return undefined;
}
