import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';

/** @throws VmsgError `limit-reached` */
export function lowestFreeDomid(domids: ReadonlyMap<string, number>): number {
  const taken = new Set(domids.values());
  for (let domid = 1; domid <= limits.loopbackDomidMax; domid += 1) if (!taken.has(domid)) return domid;
  throw new VmsgError('limit-reached', 'there is no domain number left');
}
