import { type Decoded, decode, encode, Malformed } from '../wire/layout.ts';
import { memoryRegion, type memoryTable, type singleRegion, xenMemoryRegion } from './payloads.ts';

/** Memory that a front-end shares. Addresses and sizes are u64 bytes. */
export interface RegionDescription {
  readonly guestAddress: bigint;
  readonly size: bigint;
  /** Any number of the front-end's; queues are placed in it. */
  readonly userAddress: bigint;
  /** Where the region begins in its file. */
  readonly mmapOffset: bigint;
  /** How a region of Xen is mapped; needed with XEN_MMAP, else without meaning. */
  readonly xen?: { readonly flags: number; readonly domid: number };
}

function encodeRegion(region: RegionDescription, xen: boolean, to: Uint8Array, offset: number): number {
  if (!xen) return encode(memoryRegion, region, to, offset);
  const { flags, domid } = region.xen ?? { flags: 0, domid: 0 };
  return encode(xenMemoryRegion, { ...region, xenFlags: flags, domid }, to, offset);
}

const regionBytes = (xen: boolean): number => (xen ? xenMemoryRegion.size : memoryRegion.size);

export function tableOf(regions: readonly RegionDescription[], xen: boolean): Decoded<typeof memoryTable> {
  const bytes = new Uint8Array(regions.length * regionBytes(xen));
  let at = 0;
  for (const region of regions) at += encodeRegion(region, xen, bytes, at);
  return { count: regions.length, padding: 0, regions: bytes };
}

export function singleOf(region: RegionDescription, xen: boolean): Decoded<typeof singleRegion> {
  const bytes = new Uint8Array(regionBytes(xen));
  encodeRegion(region, xen, bytes, 0);
  return { padding: 0n, region: bytes };
}

/** The regions of a table or of a single region description without XEN_MMAP. */
export function decodeRegions(bytes: Uint8Array): RegionDescription[] {
  const regions: RegionDescription[] = [];
  for (let at = 0; at + memoryRegion.size <= bytes.length; at += memoryRegion.size) {
    const region = decode(memoryRegion, bytes, at, memoryRegion.size);
    if (!(region instanceof Malformed)) regions.push(region);
  }
  return regions;
}
