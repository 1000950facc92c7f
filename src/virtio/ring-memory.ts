import { type Access, type AddressSpace, TranslateFault } from '../ports/memory.ts';
import { splitU64 } from '../wire/bytes.ts';
import type { LeaseList } from './chain.ts';
import { QueueFault } from './queue.ts';

/** One part of the rings as a driver has set it up. */
export interface RingPart {
  /** For people. */
  readonly name: string;
  /** u64 bus address. */
  readonly address: bigint;
  readonly bytes: number;
  /** Bytes. */
  readonly align: number;
  readonly access: Access;
}

/** Translates one part into one piece of host memory, which typed arrays need, aligned for its widest access. */
function openPart(memory: AddressSpace, part: RingPart, lease: LeaseList): Uint8Array | QueueFault {
  const { name, address, align } = part;
  if (address % BigInt(align) !== 0n) return new QueueFault('ring-alignment', `${name} at 0x${address.toString(16)}`);
  const pieces: Uint8Array[] = [];
  const { hi, lo } = splitU64(address);
  const held = memory.translate(hi, lo, part.bytes, part.access, pieces);
  if (held instanceof TranslateFault) return new QueueFault('ring-memory', `${name}: ${held.reason}`);
  lease.add(held);
  const piece = pieces[0]!;
  if (pieces.length !== 1) return new QueueFault('ring-memory', `${name} is scattered in host memory`);
  if (piece.byteOffset % Math.min(align, 4) !== 0) {
    return new QueueFault('ring-memory', `${name} is not aligned in host memory`);
  }
  return piece;
}

/** Translates the parts of the rings in order; all of them or none. @param lease takes what the parts hold */
export function openRingParts(
  memory: AddressSpace,
  parts: readonly RingPart[],
  lease: LeaseList,
): Uint8Array[] | QueueFault {
  const opened: Uint8Array[] = [];
  for (const part of parts) {
    const piece = openPart(memory, part, lease);
    if (piece instanceof QueueFault) {
      lease.release();
      return piece;
    }
    opened.push(piece);
  }
  return opened;
}
