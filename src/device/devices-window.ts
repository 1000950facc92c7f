import type { BusResponse } from '../virtio-msg/bus-messages.ts';

/**
 * The answer to GET_DEVICES (D5): a bitmap of the device numbers in [offset, offset + count), as much of it as
 * fits, and where to go on, which is 0 when no higher number is present.
 */
export function devicesWindow(
  devices: ReadonlyMap<number, unknown>,
  offset: number,
  requested: number,
  bitmapBytesMax: number,
): Extract<BusResponse, { name: 'GET_DEVICES' }>['body'] {
  const count = Math.min(requested, bitmapBytesMax * 8, 0x10000 - offset);
  const bitmap = new Uint8Array((count + 7) >>> 3);
  let nextOffset = 0;
  for (const number of devices.keys()) {
    const at = number - offset;
    if (at >= 0 && at < count) bitmap[at >>> 3]! |= 1 << (at & 7);
    // An empty window cannot point to its own start, for the next offset has to rise.
    else if (at >= count && at > 0 && (nextOffset === 0 || number < nextOffset)) nextOffset = number;
  }
  return { offset, nextOffset, count, bitmap };
}
