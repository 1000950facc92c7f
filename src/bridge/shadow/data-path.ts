import { VmsgError } from '../../kit/errors.ts';
import type { XsmVerdict } from '../../xen/xsm.ts';
import type { LaneBusSpec } from '../lane/protocol.ts';

/** How the data of a device that a guest serves can travel, and why it has to be copied. */
export type ChosenPath = { readonly dataPath: 'relayed' } | { readonly dataPath: 'shadow'; readonly reason: string };

type Side = Pick<LaneBusSpec, 'bus' | 'transport'>;

/** What stands between two sides. */
interface Obstacle {
  /** False: nobody knows whether it is one. */
  readonly certain: boolean;
  readonly reason: string;
}

/**
 * Chooses the data path from the bus of the driver to that of the serving guest. Memory can be passed on where both
 * are processes here, or both Xen domains that may map each other's memory. Where that is not known data is copied,
 * unless the direct path was asked for.
 * @param xsm which security module Xen runs
 * @throws VmsgError backend-unusable: a path was asked for that is not possible
 */
export function chooseDataPath(
  wanted: 'auto' | 'direct' | 'shadow',
  driver: Side,
  serving: Side,
  xsm: () => XsmVerdict,
): ChosenPath {
  if (wanted === 'shadow') return { dataPath: 'shadow', reason: 'the backend asks for it' };
  const obstacle = obstacleBetween(driver, serving, xsm);
  if (obstacle === undefined) return { dataPath: 'relayed' };
  if (wanted === 'auto') return { dataPath: 'shadow', reason: obstacle.reason };
  if (!obstacle.certain) return { dataPath: 'relayed' };
  throw new VmsgError('backend-unusable', `the data path cannot be direct: ${obstacle.reason}`);
}

function obstacleBetween(driver: Side, serving: Side, xsm: () => XsmVerdict): Obstacle | undefined {
  if (driver.transport !== serving.transport) {
    const [xen, process] = driver.transport === 'xen' ? [driver, serving] : [serving, driver];
    const sides = `the guest of bus ${xen.bus} is a Xen domain and that of bus ${process.bus} a process`;
    return { certain: true, reason: `${sides}: neither can map the other's memory` };
  }
  if (driver.transport === 'loopback') return undefined;
  const { mode, reason } = xsm();
  if (mode === 'silo') {
    return { certain: true, reason: `Xen runs with XSM SILO (${reason}): domains cannot map each other's memory` };
  }
  if (mode !== 'unknown') return undefined;
  return { certain: false, reason: `it is not known whether Xen lets domains map each other's memory (${reason})` };
}
