import { writeStream } from '../libc/byte-stream.ts';
import { SystemCallError } from '../libc/errno.ts';
import { connectUnix } from '../libc/unix-socket.ts';

type Environment = Readonly<Record<string, string | undefined>>;

/** First descriptor that systemd passes (sd_listen_fds(3)). */
const firstFd = 3;

/**
 * The socket that systemd listens on for us.
 * @returns its descriptor, undefined where there is none for this process
 */
export function activatedSocket(env: Environment, pid: number): number | undefined {
  const count = Number(env.LISTEN_FDS ?? 0);
  return env.LISTEN_PID === String(pid) && Number.isInteger(count) && count > 0 ? firstFd : undefined;
}

/**
 * Tells the service manager about this process (sd_notify(3)): `READY=1`, `STOPPING=1`. Without a manager, nothing.
 * @returns why it could not be told, null when all is well
 */
export function notifyManager(env: Environment, text: string): string | null {
  const path = env.NOTIFY_SOCKET;
  if (path === undefined || path === '') return null;
  // Only managers of other times and containers have sockets without a path.
  if (!path.startsWith('/')) return `NOTIFY_SOCKET is no path: ${path}`;
  try {
    const socket = connectUnix(path, 'datagram');
    if (typeof socket === 'string') return `${path}: ${socket}`;
    const sent = writeStream(socket.number, new TextEncoder().encode(text));
    socket.close();
    return sent === 'ended' ? `${path}: nobody takes the message` : null;
  } catch (error) {
    if (error instanceof SystemCallError) return error.message;
    throw error;
  }
}
