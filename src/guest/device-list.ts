import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { BusRequestBody, BusResponseBody } from './requests.ts';

/** Devices that one GET_DEVICES response of `maxMessageSize` bytes can cover: 14 bytes are not bitmap. */
const windowDevices = (maxMessageSize: number): number => Math.min(0xfff8, (maxMessageSize - 14) * 8);

/** Present numbers of one window, or undefined when the response contradicts its request (D5, GET_DEVICES). */
function windowNumbers(
  request: BusRequestBody<'GET_DEVICES'>,
  response: BusResponseBody<'GET_DEVICES'>,
): number[] | undefined {
  const { offset, nextOffset, count, bitmap } = response;
  if (offset !== request.offset || count > request.count) return undefined;
  // The next window starts after this one; 0 ends the walk.
  if (nextOffset !== 0 && (nextOffset <= offset || nextOffset < offset + count)) return undefined;
  const numbers: number[] = [];
  for (let i = 0; i < count; i++) {
    if (((bitmap[i >>> 3] ?? 0) >>> (i & 7)) & 1) numbers.push(offset + i);
  }
  return numbers.some((number) => number > 0xffff) ? undefined : numbers;
}

/**
 * Walks the GET_DEVICES windows of a bus.
 * @returns device numbers, ascending
 * @throws VmsgError 'protocol-violation' when a window contradicts its request or there are too many
 */
export async function listDevices(
  maxMessageSize: number,
  ask: (request: BusRequestBody<'GET_DEVICES'>) => Promise<BusResponseBody<'GET_DEVICES'>>,
): Promise<number[]> {
  const found: number[] = [];
  let offset = 0;
  for (let window = 0; window < limits.guestDeviceWindows; window++) {
    const request = { offset, count: Math.min(windowDevices(maxMessageSize), 0x10000 - offset) };
    const response = await ask(request);
    const numbers = windowNumbers(request, response);
    if (numbers === undefined) {
      throw new VmsgError('protocol-violation', `GET_DEVICES: the window at ${offset} contradicts its request`);
    }
    for (const number of numbers) found.push(number);
    if (response.nextOffset === 0) return found;
    offset = response.nextOffset;
  }
  throw new VmsgError('protocol-violation', `GET_DEVICES: more than ${limits.guestDeviceWindows} windows`);
}
