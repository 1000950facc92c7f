import type { RingBackend } from '../../../../device/queue-engine.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import type { SharedSignal } from '../../../../libc/signal-batch.ts';
import type { BackendDescription, BackendHost } from '../../../../ports/backend.ts';
import { protocolFeature } from '../../../../vhost-user/features.ts';
import { feature, isDeviceBit } from '../../../../virtio/features.ts';
import type { DataPlane } from '../../../data-plane/data-plane.ts';
import { bridgeVendorId } from '../../vendor.ts';
import type { ConnectionParts } from '../connection.ts';
import { Program } from './program.ts';
import { DirectQueues } from './queues.ts';

/** Of what a ring can do; packed rings are left out because no tested program has them. */
const ringBits = [feature.INDIRECT_DESC, feature.EVENT_IDX, feature.IN_ORDER];

export interface DirectParts extends ConnectionParts {
  readonly host: BackendHost;
  readonly signals: SharedSignal;
  readonly dataPlane: DataPlane;
  /** This way is ruled out; the device leaves the bus. */
  readonly refused: (why: string) => void;
}

/**
 * A device that a program serves on the guest's own memory. It ends with its program, and comes back, in reset, with the
 * next one.
 * @throws VmsgError as `openConnection`
 */
export async function openDirect(parts: DirectParts): Promise<RingBackend> {
  const { endpoint, host, poller, signals, dataPlane, clock } = parts;
  let queues: DirectQueues | undefined;
  let isReading = false;
  const program: Program = await Program.open(parts, {
    used: () => {},
    broken: () => host.failed('its program says that a queue is broken'),
    ended: (reason) => {
      queues?.close();
      host.gone?.(`${endpoint.name}: ${reason}`);
    },
    configChanged: () => {
      // With features that we add the configuration is ours too.
      if (isReading || program.description.added.bits().length > 0) return;
      isReading = true;
      void program.do(async ({ device }) => {
        isReading = false;
        tell(await device.readConfig(config.length));
      });
    },
    renewed: (description) => {
      if (Buffer.compare(description.config, told) !== 0) tell(description.config);
    },
  });
  /** What the driver writes stays as it is. */
  const tell = (now: Uint8Array): void => {
    told = now.slice();
    const shown = now.slice();
    for (const { offset, length } of parts.shape.driverConfig ?? [])
      shown.set(config.subarray(offset, offset + length), offset);
    config.set(shown);
    host.configChanged(0, shown);
  };
  let told = program.description.config;
  const config = preferred(program, parts);
  const unsuited = (why: string): void => {
    parts.refused(why);
    void program.fail(why);
  };
  return {
    description: describe(program, parts, config),
    resumes: false,
    openQueues: (owner) => {
      queues = new DirectQueues(
        { program, poller, signals, dataPlane, clock, unsuited, setConfig: (has) => configToWrite(parts, config, has) },
        owner,
      );
      return queues;
    },
    writeConfig: async (offset, data) => {
      // Programs end over a write to anything else.
      const isAllowed = (parts.shape.driverConfig ?? []).some(
        (range) => range.offset <= offset && offset + data.length <= range.offset + range.length,
      );
      const isWritten = isAllowed && (await writeConfig(program, offset, data));
      if (isWritten) config.set(data, offset);
      return isWritten;
    },
    close: async () => {
      await program.close();
      queues?.close();
    },
  };
}

/** The configuration space as a driver sees it: with a cache that it flushes, for its device goes when the program goes. */
function preferred({ description: { features, config } }: Program, { shape }: DirectParts): Uint8Array {
  const shown = config.slice();
  for (const { offset, value, feature: bit } of shape.preferredConfig ?? [])
    if (features.has(bit)) shown[offset] = value;
  return shown;
}

/** What the program does only once it is told. */
const configToWrite = ({ shape }: DirectParts, config: Uint8Array, has: (bit: number) => boolean) =>
  (shape.driverConfig ?? [])
    .filter(({ feature: bit }) => has(bit))
    .map(({ offset, length }) => ({ offset, data: config.slice(offset, offset + length) }));

function describe(program: Program, { shape }: DirectParts, config: Uint8Array): BackendDescription {
  const { features, queues } = program.description;
  return {
    deviceType: shape.type,
    vendorId: bridgeVendorId,
    uuid: new Uint8Array(16),
    featureBits: features.bits().filter(isDeviceBit),
    ringBits: ringBits.filter((bit) => features.has(bit)),
    config,
    queueSizes: new Array<number>(queues).fill(limits.queueSizeMax),
    maxInFlight: limits.queueSizeMax,
  };
}

async function writeConfig(program: Program, offset: number, data: Uint8Array): Promise<boolean> {
  let isWritten = false;
  await program.do(async ({ device }) => {
    if (!device.description.protocolFeatures.has(protocolFeature.CONFIG)) return;
    try {
      await device.writeConfig(offset, data);
      isWritten = true;
    } catch (error) {
      if (!(error instanceof VmsgError) || error.code !== 'backend-refused') throw error;
    }
  });
  return isWritten;
}
