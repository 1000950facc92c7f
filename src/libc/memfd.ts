import { fstatSync, ftruncateSync } from 'node:fs';
import { assert } from '../kit/assert.ts';
import { linux } from './constants.ts';
import { checked, checkedFs, errnos, failed } from './errno.ts';
import { Fd, fdLink } from './fd.ts';
import { fcntl, fstatfs, lastErrno, memfdCreate } from './native.ts';

/** The seals of the memory files this service makes: size and seals are final, contents are not. */
const sharedMemorySeals = linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_SEAL;

/**
 * Makes a sealed anonymous memory file, zero-filled, close-on-exec, never executable where the kernel knows how
 * (Linux 6.3).
 * @param name at most 249 bytes, for diagnostics only
 * @param seals F_SEAL_*
 * @throws SystemCallError
 */
export function createMemfd(name: string, sizeBytes: number, seals: number = sharedMemorySeals): Fd {
  // Node would make 0 of a negative size.
  assert(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, `memfd of ${sizeBytes} bytes`);
  const flags = linux.MFD_CLOEXEC | linux.MFD_ALLOW_SEALING;
  let number = memfdCreate(name, flags | linux.MFD_NOEXEC_SEAL);
  if (number < 0 && lastErrno() === errnos.EINVAL) number = memfdCreate(name, flags);
  const fd = new Fd(checked(number, 'memfd_create', `${sizeBytes} bytes`));
  try {
    checkedFs('ftruncate', `${sizeBytes} bytes`, () => ftruncateSync(fd.number, sizeBytes));
    if (fcntl(fd.number, linux.F_ADD_SEALS, 'int', seals) < 0) failed('fcntl(F_ADD_SEALS)');
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

export interface MemfdInfo {
  readonly sizeBytes: number;
  /** F_SEAL_* */
  readonly seals: number;
}

/**
 * Decides whether a descriptor that a peer sent can be mapped shared and writable without the peer being able to
 * pull the pages away: a memfd of ordinary pages, open for reading and writing, that cannot shrink and is not
 * sealed against writing. The order matters: what might wait for a foreign file system (fstat, fstatfs) comes
 * after the proof that the file is a memory file.
 * @returns the facts, or the reason for a refusal in words; never throws
 */
export function inspectMemfd(fd: number): MemfdInfo | string {
  const seals = fcntl(fd, linux.F_GET_SEALS, 'int', 0);
  if (seals < 0) return 'not a memory file';
  const flags = fcntl(fd, linux.F_GETFL, 'int', 0);
  if (flags < 0 || (flags & linux.O_ACCMODE) !== linux.O_RDWR) return 'not open for reading and writing';
  const statfs = new Uint8Array(256);
  if (fstatfs(fd, statfs) < 0) return 'its file system is not known';
  const magic = new DataView(statfs.buffer).getBigUint64(0, true);
  // hugetlbfs has seals too, but its faults can fail with SIGBUS when the pool of huge pages is empty.
  if (magic !== BigInt(linux.TMPFS_MAGIC)) return 'not made of ordinary pages';
  if (!fdLink(fd)?.startsWith('/memfd:')) return 'not a memfd';
  if ((seals & linux.F_SEAL_SHRINK) === 0) return 'not sealed against shrinking';
  if ((seals & (linux.F_SEAL_WRITE | linux.F_SEAL_FUTURE_WRITE)) !== 0) return 'sealed against writing';
  // The size only grows from here on.
  const size = fstatSync(fd, { bigint: true }).size;
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) return 'too large';
  return { sizeBytes: Number(size), seals };
}
