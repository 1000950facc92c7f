import type { Clock, Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import { Scope } from '../../../kit/scope.ts';
import type { Fd } from '../../../libc/fd.ts';
import type { Poller } from '../../../libc/poll.ts';
import { socketPair } from '../../../libc/unix-socket.ts';
import { VhostDevice } from '../../../vhost-user/device.ts';
import { protocolFeature, usedProtocolFeatures } from '../../../vhost-user/features.ts';
import { FrontEnd } from '../../../vhost-user/front-end.ts';
import { openDevice } from '../../../vhost-user/negotiation.ts';
import { openMessenger, SocketChannel } from '../../../vhost-user/socket.ts';
import { FeatureSet } from '../../../virtio/features.ts';
import { describeServed, type ServedDescription } from './describe.ts';
import type { Endpoint } from './endpoint.ts';
import type { TypedShape } from './shapes.ts';

export interface ConnectionParts {
  readonly endpoint: Endpoint;
  readonly shape: TypedShape;
  readonly poller: Poller;
  readonly clock: Clock;
  /** Address for a network device whose back-end gives none. */
  readonly mac?: string;
}

export interface ConnectionEvents {
  /** The back-end has completed requests of a queue, and says so by a message. */
  used(queue: number): void;
  configChanged(): void;
  /** It says that a queue is broken. */
  broken(): void;
  /** The last event; not told after the scope was closed. */
  closed(reason: string): void;
}

/** A back-end that has introduced itself. */
export interface Connection {
  /** Ends the connection. */
  readonly scope: Scope;
  readonly frontEnd: FrontEnd;
  readonly device: VhostDevice;
  readonly description: ServedDescription;
}

/** The log of requests in flight is ours. */
const protocolFeatures = usedProtocolFeatures.minus(FeatureSet.of(protocolFeature.INFLIGHT_SHMFD));

const givenUp = (): VmsgError => new VmsgError('unavailable', 'the back-end was given up');

/**
 * Connects, learns what the back-end serves, and makes something of the connection, all in a bounded time.
 * @param opening closed by who wants it no more
 * @param use what it makes is kept unless the connection has ended meanwhile, as `stillThere` tells by throwing
 * @throws VmsgError unavailable: nobody is there, or it does not answer; backend-unusable, backend-refused,
 *   backend-lost, protocol-violation, system-call
 */
export async function openConnection<T>(
  parts: ConnectionParts,
  events: ConnectionEvents,
  opening: Scope,
  use: (connection: Connection, stillThere: () => void) => Promise<T>,
): Promise<T> {
  const { clock, endpoint } = parts;
  const scope = new Scope();
  const seconds = limits.vhostUserOpenTimeoutMs / 1000;
  let late: VmsgError | undefined;
  let deadline: Timer | undefined;
  opening.defer(() => {
    deadline?.cancel();
    scope.close();
  });
  const stillThere = (): void => {
    if (scope.closed) throw late ?? givenUp();
  };
  try {
    const fd = await endpoint.connect(scope);
    stillThere();
    deadline = clock.after(limits.vhostUserOpenTimeoutMs, () => {
      late = new VmsgError('unavailable', `${endpoint.name} does not introduce itself in ${seconds} s`);
      scope.close();
    });
    const { frontEnd, device } = await introduce(fd, parts, events, scope);
    const description = describeServed(device.description, parts.shape, parts.mac);
    return await use({ scope, frontEnd, device, description }, stillThere);
  } catch (error) {
    scope.close();
    throw late ?? error;
  } finally {
    deadline?.cancel();
  }
}

async function introduce(fd: Fd, { shape, poller, clock }: ConnectionParts, events: ConnectionEvents, scope: Scope) {
  const messenger = scope.own(openMessenger());
  const channelOf = (end: Fd): SocketChannel => scope.own(new SocketChannel(end, messenger, poller));
  const frontEnd = new FrontEnd(channelOf(fd), clock, {
    configChanged: () => events.configChanged(),
    queueCalled: (queue) => events.used(queue),
    queueFailed: () => events.broken(),
    closed: ({ message }) => events.closed(message),
  });
  scope.own(frontEnd);
  const openBackEndChannel = () => {
    const [ours, theirs] = socketPair('stream');
    return { ours: channelOf(ours), theirs };
  };
  const { configBytes, type } = shape;
  const wanted = { configBytes, queues: 1, deviceId: type, protocolFeatures, openBackEndChannel };
  return { frontEnd, device: new VhostDevice(frontEnd, await openDevice(frontEnd, wanted)) };
}
