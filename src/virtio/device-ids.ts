/** Device type ids (virtio 1.3, section 5, and ids that were assigned since) with a short name for people. */
const deviceNames: Readonly<Record<number, string>> = {
  1: 'net',
  2: 'blk',
  3: 'console',
  4: 'rng',
  5: 'balloon',
  6: 'iomem',
  7: 'rpmsg',
  8: 'scsi',
  9: '9p',
  10: 'mac80211-wlan',
  11: 'rproc-serial',
  12: 'caif',
  13: 'memory-balloon',
  16: 'gpu',
  17: 'rtc',
  18: 'input',
  19: 'vsock',
  20: 'crypto',
  21: 'signal-dist',
  22: 'pstore',
  23: 'iommu',
  24: 'mem',
  25: 'sound',
  26: 'fs',
  27: 'pmem',
  28: 'rpmb',
  29: 'mac80211-hwsim',
  30: 'video-encoder',
  31: 'video-decoder',
  32: 'scmi',
  33: 'nitro-sec-mod',
  34: 'i2c',
  35: 'watchdog',
  36: 'can',
  38: 'param-server',
  39: 'audio-policy',
  40: 'bluetooth',
  41: 'gpio',
  42: 'rdma',
  43: 'camera',
  44: 'ism',
  45: 'spi',
  46: 'tee',
  47: 'cpu-balloon',
  48: 'media',
};

/**
 * The ids that code of this project names. `template` and `shm` are no devices of the standard: experiments count
 * backwards from 65535 (virtio 1.3, appendix B.3).
 */
export const deviceId = { blk: 2, console: 3, rng: 4, template: 0xffff, shm: 0xfffe } as const;

/** Name of a device type; an id that is not assigned gives `type-<id>`. */
export function deviceName(id: number): string {
  return deviceNames[id] ?? `type-${id}`;
}

/** Id of a name that `deviceName` gives, or undefined. */
export function deviceIdOf(name: string): number | undefined {
  for (const [id, known] of Object.entries(deviceNames)) if (known === name) return Number(id);
  return undefined;
}
