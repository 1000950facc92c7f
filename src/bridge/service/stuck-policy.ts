import { toErrorData } from '../../kit/errors.ts';
import type { LaneEvent } from '../lane/protocol.ts';
import type { Inventory } from './inventory.ts';
import type { ServiceLog } from './log.ts';

interface Means {
  readonly inventory: Inventory;
  readonly log: ServiceLog;
  readonly destroyDomain: (domid: number) => Promise<void>;
}

/** A domain keeps memory that others need back: what `onStuck` of its bus says happens. Every step is in the log. */
export async function actOnStuck(
  event: Extract<LaneEvent, { type: 'share-stuck' | 'share-released' }>,
  { inventory, log, destroyDomain }: Means,
): Promise<void> {
  const { mapperBus, mapperDomid, domid, pages, ageMs } = event;
  const bus = inventory.get('buses', mapperBus);
  const about = { bus: mapperBus, domain: bus?.spec.domain, mapperDomid, memoryOf: domid, pages, ageMs };
  const wanted = bus?.spec.transport === 'xen' && bus.spec.onStuck === 'destroy-mapper';
  // A number that is not that of the bus now may be another domain's, and 0 is ours.
  const isIts = bus?.lane.domid === mapperDomid && mapperDomid !== 0;
  if (!wanted || !isIts) {
    log.warn(about, 'a domain does not let go of memory of another one');
    return;
  }
  log.warn(about, 'destroying a domain that does not let go of memory of another one');
  try {
    await destroyDomain(mapperDomid);
    log.warn(about, 'the domain was destroyed');
  } catch (error) {
    log.warn({ ...about, reason: toErrorData(error).message }, 'the domain could not be destroyed');
  }
}
