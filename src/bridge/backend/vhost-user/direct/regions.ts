import type { SharedRegion } from '../../../../device/shared-memory.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { type Closable, Scope } from '../../../../kit/scope.ts';
import type { MemoryHandle } from '../../../../ports/bus.ts';
import type { DeviceRegion, VhostDevice } from '../../../../vhost-user/device.ts';
import { protocolFeature } from '../../../../vhost-user/features.ts';
import type { RegionDescription } from '../../../../vhost-user/regions.ts';

/** A region as a program gets it. */
export interface PassedRegion extends Omit<RegionDescription, 'mmapOffset'> {
  readonly handle: MemoryHandle;
}

/** What one guest shares, as a program gets it. */
export class GuestRegions implements Closable {
  /** By area. */
  readonly #passed = new Map<number, PassedRegion>();
  readonly #unreachable = new Map<number, string>();

  /** All that a program can have. */
  get all(): PassedRegion[] {
    return [...this.#passed.values()];
  }

  /** Why a program cannot have something that is shared now. */
  get problem(): string | undefined {
    return this.#unreachable.values().next().value;
  }

  /** @returns why a program cannot have it */
  add(shared: SharedRegion): PassedRegion | string {
    const { area } = shared;
    const passed = passedOn(shared);
    if (typeof passed === 'string') this.#unreachable.set(area, passed);
    else this.#passed.set(area, passed);
    return passed;
  }

  /** @returns what is shared no more; its handle is the caller's */
  take(area: number): PassedRegion | undefined {
    const passed = this.#passed.get(area);
    this.#passed.delete(area);
    this.#unreachable.delete(area);
    return passed;
  }

  close(): void {
    for (const { handle } of this.#passed.values()) handle.close();
    this.#passed.clear();
    this.#unreachable.clear();
  }
}

function passedOn({ area, readOnly, memory, foreign }: SharedRegion): PassedRegion | string {
  if (foreign !== undefined) return `area ${area} of the guest is for domain ${foreign.domid}`;
  if (readOnly) return `area ${area} of the guest is read-only`;
  const handle = memory.handle?.() ?? 'its kind of memory stays here';
  if (typeof handle === 'string') return `area ${area} of the guest cannot be passed on: ${handle}`;
  const address = BigInt(area) << 48n;
  // Nothing of ours tells where memory is mapped here: user addresses are those of the bus.
  return { guestAddress: address, userAddress: address, size: BigInt(memory.bytes.length), handle };
}

/** Whether a program takes regions one by one; else it takes whole tables. */
const takesSingle = ({ description }: VhostDevice): boolean =>
  description.protocolFeatures.has(protocolFeature.CONFIGURE_MEM_SLOTS);

/** Makes these regions all that the program has. @throws VmsgError as `VhostDevice.setMemory` */
export async function giveAll(device: VhostDevice, regions: readonly PassedRegion[]): Promise<void> {
  await withDescriptors(regions, (opened) => device.setMemory(opened));
}

/** @param all that it has then. @throws VmsgError as `VhostDevice.addRegion` */
export async function giveOne(device: VhostDevice, region: PassedRegion, all: readonly PassedRegion[]): Promise<void> {
  if (takesSingle(device)) await withDescriptors([region], ([only]) => device.addRegion(only!));
  else await giveAll(device, all);
}

/** @param rest that it has then. @throws VmsgError */
export async function takeBack(
  device: VhostDevice,
  region: PassedRegion,
  rest: readonly PassedRegion[],
): Promise<void> {
  const { guestAddress, userAddress, size } = region;
  // A new program may have been started meanwhile.
  if (!device.regions.some((each) => each.guestAddress === guestAddress && each.size === size)) return;
  if (takesSingle(device)) await device.removeRegion({ guestAddress, userAddress, size, mmapOffset: 0n });
  else if (rest.length > 0) await giveAll(device, rest);
  // Programs do not take a table without regions.
  else throw new VmsgError('backend-lost', 'the guest took its memory back');
}

async function withDescriptors(
  regions: readonly PassedRegion[],
  send: (regions: readonly DeviceRegion[]) => Promise<void>,
): Promise<void> {
  const scope = new Scope();
  try {
    const opened = regions.map(({ handle, ...region }) => {
      const handed = handle.open();
      if (typeof handed === 'string') throw new VmsgError('backend-refused', `it cannot be handed over: ${handed}`);
      const { fd, offset } = scope.own(handed);
      return { ...region, fd, mmapOffset: offset };
    });
    await send(opened);
  } finally {
    // The program has copies. Grants stay mapped as long as there is one.
    scope.close();
  }
}
