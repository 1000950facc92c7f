const clusterBits = 16;
const clusterBytes = 1 << clusterBits;
const headerBytes = 104;
/** One entry of the first table covers what a second table of one cluster points to. */
const diskMaxBytes = (clusterBytes / 8) * clusterBytes;
/** Header, table of reference counts, reference counts, first table: a cluster each. */
const at = { refcountTable: clusterBytes, refcounts: 2 * clusterBytes, firstTable: 3 * clusterBytes };

/** An empty qcow2 image, version 3 (QEMU, docs/interop/qcow2.rst). @param bytes of the disk, at most 512 MiB */
export function emptyQcow2(bytes: number): Uint8Array {
  if (bytes > diskMaxBytes) throw new RangeError(`${bytes} bytes take more than one entry of the first table`);
  const image = Buffer.alloc(4 * clusterBytes);
  image.write('QFI\xfb', 0, 'latin1');
  image.writeUInt32BE(3, 4);
  image.writeUInt32BE(clusterBits, 20);
  image.writeBigUInt64BE(BigInt(bytes), 24);
  image.writeUInt32BE(1, 36);
  image.writeBigUInt64BE(BigInt(at.firstTable), 40);
  image.writeBigUInt64BE(BigInt(at.refcountTable), 48);
  image.writeUInt32BE(1, 56);
  // Reference counts of 2^4 bits.
  image.writeUInt32BE(4, 96);
  image.writeUInt32BE(headerBytes, 100);
  image.writeBigUInt64BE(BigInt(at.refcounts), at.refcountTable);
  for (let cluster = 0; cluster < image.length / clusterBytes; cluster++) {
    image.writeUInt16BE(1, at.refcounts + 2 * cluster);
  }
  return image;
}
