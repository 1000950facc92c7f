import { bytes, i32, layout, u16, u32, u64 } from '../../src/wire/layout.ts';

const source = 'Linux, include/uapi/linux/fuse.h, protocol 7.31';

/** Requests, as far as a test guest makes them. */
export const fuseOp = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  READLINK: 5,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  RELEASE: 18,
  FSYNC: 20,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  CREATE: 35,
} as const;

export const fuseVersion = { major: 7, minor: 31 };
export const fuseRoot = 1n;

export const fuseInHeader = layout('fuse_in_header', source, 40, {
  len: u32(0, 'bytes of the request, this header included'),
  opcode: u32(4, 'request'),
  unique: u64(8, 'comes back in the answer'),
  nodeid: u64(16, 'what it is about'),
  uid: u32(24, 'who asks'),
  gid: u32(28, 'who asks'),
  pid: u32(32, 'who asks'),
});

export const fuseOutHeader = layout('fuse_out_header', source, 16, {
  len: u32(0, 'bytes of the answer, this header included'),
  error: i32(4, '0, or a negative error number'),
  unique: u64(8, 'as asked'),
});

export const fuseInitIn = layout('fuse_init_in', source, 16, {
  major: u32(0, '7'),
  minor: u32(4, 'version of the driver'),
  maxReadahead: u32(8, 'bytes'),
  flags: u32(12, 'what the driver can do'),
});

export const fuseInitOut = layout('fuse_init_out', source, 64, {
  major: u32(0, '7'),
  minor: u32(4, 'version of the device'),
  maxReadahead: u32(8, 'bytes'),
  flags: u32(12, 'what both can do'),
  maxBackground: u16(16, 'requests'),
  congestionThreshold: u16(18, 'requests'),
  maxWrite: u32(20, 'bytes of one WRITE'),
});

export const fuseAttr = layout('fuse_attr', source, 88, {
  ino: u64(0, 'inode'),
  size: u64(8, 'bytes'),
  blocks: u64(16, 'of 512 bytes'),
  mtime: u64(32, 'seconds'),
  mode: u32(60, 'type and permissions'),
  nlink: u32(64, 'names'),
  uid: u32(68, 'owner'),
  gid: u32(72, 'group'),
});

/** What LOOKUP, MKDIR and CREATE answer; a fuse_attr follows. */
export const fuseEntryOut = layout('fuse_entry_out head', source, 40, {
  nodeid: u64(0, 'for later requests'),
  generation: u64(8, 'of the node'),
});

/** What GETATTR answers; a fuse_attr follows. */
export const fuseAttrOut = layout('fuse_attr_out head', source, 16, { valid: u64(0, 'seconds') });

export const fuseGetattrIn = layout('fuse_getattr_in', source, 16, {
  flags: u32(0, '1: by handle'),
  fh: u64(8, 'handle'),
});

export const fuseOpenIn = layout('fuse_open_in', source, 8, { flags: u32(0, 'of open(2)') });

export const fuseOpenOut = layout('fuse_open_out', source, 16, {
  fh: u64(0, 'handle'),
  flags: u32(8, 'how it may be cached'),
});

export const fuseCreateIn = layout('fuse_create_in', source, 16, {
  flags: u32(0, 'of open(2)'),
  mode: u32(4, 'type and permissions'),
  umask: u32(8, 'of who asks'),
});

export const fuseMkdirIn = layout('fuse_mkdir_in', source, 8, {
  mode: u32(0, 'permissions'),
  umask: u32(4, 'of who asks'),
});

export const fuseReadIn = layout('fuse_read_in', source, 40, {
  fh: u64(0, 'handle'),
  offset: u64(8, 'bytes, or a place in a directory'),
  size: u32(16, 'bytes at most'),
});

/** The data follows. */
export const fuseWriteIn = layout('fuse_write_in', source, 40, {
  fh: u64(0, 'handle'),
  offset: u64(8, 'bytes'),
  size: u32(16, 'bytes'),
});

export const fuseWriteOut = layout('fuse_write_out', source, 8, { size: u32(0, 'bytes written') });

export const fuseReleaseIn = layout('fuse_release_in', source, 24, { fh: u64(0, 'handle') });

export const fuseFsyncIn = layout('fuse_fsync_in', source, 16, { fh: u64(0, 'handle'), flags: u32(8, '1: data only') });

export const fuseForgetIn = layout('fuse_forget_in', source, 8, { lookups: u64(0, 'entries that were given out') });

/** An entry of a directory; the name follows, then zeroes to a multiple of 8. */
export const fuseDirent = layout('fuse_dirent', source, 24, {
  ino: u64(0, 'inode'),
  next: u64(8, 'place of what follows'),
  nameBytes: u32(16, 'length of the name'),
  type: u32(20, 'upper four bits of the mode'),
});

export const fsConfig = layout('virtio_fs_config', 'virtio 1.3, 5.11.4', 40, {
  tag: bytes(0, 36, 'name of the file system, filled up with zeroes'),
  requestQueues: u32(36, 'queues behind the first one'),
});
