import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { deviceName } from '../virtio/device-ids.ts';
import type { DeviceRequests } from './requests.ts';

/** What a device says about itself (D5, GET_DEVICE_INFO). */
export interface DeviceInfo {
  readonly number: number;
  /** virtio device type, such as 2, and its name, such as `blk`. */
  readonly type: number;
  readonly name: string;
  readonly vendorId: number;
  /** Lower-case, with dashes; undefined when the device has none. */
  readonly uuid: string | undefined;
  /** 32-bit feature blocks. */
  readonly featureBlockCount: number;
  /** Bytes of the configuration space. */
  readonly configSize: number;
  readonly maxVirtqueues: number;
}

function uuidText(bytes: Uint8Array): string | undefined {
  if (bytes.every((byte) => byte === 0)) return undefined;
  const hex = Buffer.from(bytes).toString('hex');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/**
 * Reads the description of a device; changes nothing, and works while somebody else drives it.
 * @throws VmsgError 'not-found' when there is no such device
 */
export async function deviceInfo(bus: DeviceRequests, number: number): Promise<DeviceInfo> {
  if (!Number.isInteger(number) || number < 0 || number > 0xffff) {
    throw new VmsgError('invalid-request', `a device number is 0..65535, not ${number}`);
  }
  const info = await bus.request(number, 'GET_DEVICE_INFO', {});
  if (info.deviceId === 0) throw new VmsgError('not-found', `device ${number} is not there`);
  const adminEnd = info.adminStart + info.adminCount;
  if (info.maxVirtqueues > 0x10000 || adminEnd > info.maxVirtqueues || info.configSize > limits.guestConfigMaxBytes) {
    throw new VmsgError('protocol-violation', `device ${number} describes itself beyond all bounds`);
  }
  return {
    number,
    type: info.deviceId,
    name: deviceName(info.deviceId),
    vendorId: info.vendorId,
    uuid: uuidText(info.uuid),
    featureBlockCount: info.featureBlockCount,
    configSize: info.configSize,
    maxVirtqueues: info.maxVirtqueues,
  };
}
