import { layout, u8, u16, u32, u64 } from '../wire/layout.ts';

/** Bytes of a sector; every offset and capacity of a block device is in these (virtio 1.3, 5.2.4). */
export const sectorBytes = 512;

export const blkConfig = layout('virtio_blk_config', 'virtio 1.3, 5.2.4', 60, {
  capacity: u64(0, 'sectors of 512 bytes'),
  sizeMax: u32(8, 'largest segment, with SIZE_MAX'),
  segMax: u32(12, 'most segments of a request, with SEG_MAX'),
  cylinders: u16(16, 'with GEOMETRY'),
  heads: u8(18, 'with GEOMETRY'),
  sectors: u8(19, 'with GEOMETRY'),
  blkSize: u32(20, 'block size, with BLK_SIZE'),
  physicalBlockExp: u8(24, 'with TOPOLOGY'),
  alignmentOffset: u8(25, 'with TOPOLOGY'),
  minIoSize: u16(26, 'with TOPOLOGY'),
  optIoSize: u32(28, 'with TOPOLOGY'),
  writeback: u8(32, 'with CONFIG_WCE'),
  unused0: u8(33, 'zero'),
  numQueues: u16(34, 'with MQ'),
  maxDiscardSectors: u32(36, 'with DISCARD'),
  maxDiscardSeg: u32(40, 'with DISCARD'),
  discardSectorAlignment: u32(44, 'with DISCARD'),
  maxWriteZeroesSectors: u32(48, 'with WRITE_ZEROES'),
  maxWriteZeroesSeg: u32(52, 'with WRITE_ZEROES'),
  writeZeroesMayUnmap: u8(56, 'with WRITE_ZEROES'),
});

export const blkRequestHead = layout('virtio_blk_req head', 'virtio 1.3, 5.2.6', 16, {
  type: u32(0, 'request type'),
  reserved: u32(4, 'zero'),
  sector: u64(8, 'first sector'),
});

/** One range of a DISCARD or WRITE_ZEROES request; its data is an array of these. */
export const blkRange = layout('virtio_blk_discard_write_zeroes', 'virtio 1.3, 5.2.6', 16, {
  sector: u64(0, 'first sector'),
  sectors: u32(8, 'number of sectors'),
  flags: u32(12, 'bit 0: unmap, for WRITE_ZEROES only; all others are reserved'),
});
export const blkRangeUnmap = 1;

export const blkRequestType = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 } as const;
export const blkStatus = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;
/** GET_ID answers this many bytes, padded with zeros. */
export const blkIdBytes = 20;
