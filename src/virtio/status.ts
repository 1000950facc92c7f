/** Bits of the device status field (virtio 1.3, section 2.1). */
export const status = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  DEVICE_NEEDS_RESET: 64,
  FAILED: 128,
} as const;

/** `RESET` for 0, else the names of the set bits, such as `ACKNOWLEDGE|DRIVER`; unknown bits as one hex number. */
export function describeStatus(value: number): string {
  if (value === 0) return 'RESET';
  const names: string[] = [];
  let rest = value >>> 0;
  for (const [name, bit] of Object.entries(status)) {
    if ((rest & bit) === 0) continue;
    names.push(name);
    rest = (rest & ~bit) >>> 0;
  }
  if (rest !== 0) names.push(`0x${rest.toString(16)}`);
  return names.join('|');
}
