import { VmsgError } from '../../../kit/errors.ts';
import type { Scope } from '../../../kit/scope.ts';
import { Fd } from '../../../libc/fd.ts';
import { connectUnix } from '../../../libc/unix-socket.ts';

/** How connections to the back-end of one device come about. */
export interface Endpoint {
  /** Who is at the other end, for people. */
  readonly name: string;
  /** Why a back-end behind it gets copies unless the backend says otherwise; undefined where its end can be seen. */
  readonly shadowReason: string | undefined;
  /**
   * A connection for one session, in a bounded time.
   * @param scope of the session: owns the connection, and is closed when it is wanted no more, which also ends a program
   *   that was started for it
   * @throws VmsgError unavailable: nobody is there; backend-unusable, system-call, invalid-request
   */
  connect(scope: Scope): Promise<Fd>;
  /**
   * Only where the back-end is a program that the service starts: settles when no process of an earlier connection can
   * run any more, however long that takes. Absent where nobody can tell.
   */
  surelyGone?(): Promise<void>;
  /** The end that follows is asked for: another connection is to come. */
  renewed?(): void;
  /** The device is no more. Programs have ended, or the time for that is over. */
  close(): Promise<void>;
}

const unconnected = {
  absent: 'there is no such socket',
  refused: 'nobody listens on it',
  busy: 'too many wait for it to accept their connection',
} as const;

/** Connects to a socket. @throws VmsgError unavailable, invalid-request, system-call */
export function connectNow(socket: string, scope: Scope): Fd {
  const fd = connectUnix(socket, 'stream');
  if (!(fd instanceof Fd)) throw new VmsgError('unavailable', `${socket}: ${unconnected[fd]}`);
  return scope.own(fd);
}

/** Why who is behind a socket gets no memory of a guest. */
export const otherReason = 'a vhost-user back-end by its socket gets copies: it may outlive the service and the guest';

/** A back-end that somebody else started, and that listens on a socket. */
export const socketEndpoint = (socket: string): Endpoint => ({
  name: `the back-end at ${socket}`,
  shadowReason: otherReason,
  connect: async (scope) => connectNow(socket, scope),
  close: async () => {},
});
