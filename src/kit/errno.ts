/** Linux error numbers that cross wires; the same on every architecture we run on. */
export const errno = {
  EPERM: 1,
  ENOENT: 2,
  EIO: 5,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  EMFILE: 24,
  ENOSPC: 28,
  EPROTO: 71,
  EMSGSIZE: 90,
  EOPNOTSUPP: 95,
  ETIMEDOUT: 110,
} as const;

export type ErrnoName = keyof typeof errno;

/** An errno by name, or EIO for one that has no number on the wire. */
export const wireErrno = (name: string): ErrnoName => (name in errno ? (name as ErrnoName) : 'EIO');
