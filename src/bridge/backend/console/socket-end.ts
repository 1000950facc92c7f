import type { Clock, Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import { farSide, readStream, writeStream } from '../../../libc/byte-stream.ts';
import { SystemCallError } from '../../../libc/errno.ts';
import type { Fd } from '../../../libc/fd.ts';
import type { Poller, Watch } from '../../../libc/poll.ts';
import { refuseDescriptors, UnixListener } from '../../../libc/unix-socket.ts';
import type { HostEnd, HostEndEvents } from './host-end.ts';
import { StreamWatch } from './stream-watch.ts';

interface Client {
  readonly fd: Fd;
  readonly watch: StreamWatch;
  /** It has shut down its sending side, and all it sent was read. */
  silent: boolean;
  /** It takes no more; what it sent may still be there. */
  deaf: boolean;
}

const userOnly = 0o600;
const acceptRetryMs = 1_000;
const silentPollMs = 250;

/** A listening Unix stream socket with one client at a time; others are sent away at once. */
export class SocketEnd implements HostEnd {
  readonly #listener: UnixListener;
  readonly #poller: Poller;
  readonly #clock: Clock;
  #events: HostEndEvents | undefined;
  #accepting: Watch | undefined;
  #client: Client | undefined;
  #reading = false;
  #retry: Timer | undefined;
  #silentCheck: Timer | undefined;

  private constructor(listener: UnixListener, poller: Poller, clock: Clock) {
    this.#listener = listener;
    this.#poller = poller;
    this.#clock = clock;
  }

  /** @throws VmsgError backend-unusable */
  static open(path: string, poller: Poller, clock: Clock): SocketEnd {
    try {
      const options = { mode: userOnly, backlog: limits.consoleBacklogConnections, type: 'stream' } as const;
      return new SocketEnd(UnixListener.listen(path, options), poller, clock);
    } catch (error) {
      if (error instanceof VmsgError) throw new VmsgError('backend-unusable', error.message);
      throw error;
    }
  }

  get connected(): boolean {
    return this.#client !== undefined;
  }

  start(events: HostEndEvents): void {
    this.#events = events;
    this.#accepting = this.#poller.watch(this.#listener.fd.number, () => this.#accept());
  }

  #accept(): void {
    try {
      const fd = this.#listener.accept();
      if (fd === undefined) return;
      this.#leaveRoom();
      if (this.#client === undefined) this.#welcome(fd);
      else fd.close();
    } catch (error) {
      if (!(error instanceof SystemCallError)) throw error;
      // Out of descriptors or memory: those that wait keep waiting, and this must not spin.
      this.#accepting?.pause();
      this.#retry = this.#clock.after(acceptRetryMs, () => this.#accepting?.resume());
    }
  }

  /** The client before may have left while nobody wanted to read from it. */
  #leaveRoom(): void {
    const client = this.#client;
    if (client === undefined || !farSide(client.fd.number).gone) return;
    if (this.#reading) this.#events?.readable();
    if (this.#client === client) this.#drop();
  }

  #welcome(fd: Fd): void {
    refuseDescriptors(fd.number);
    try {
      const watch = new StreamWatch(
        this.#poller,
        fd.number,
        () => this.#events?.readable(),
        () => this.#events?.writable(),
      );
      this.#client = { fd, watch, silent: false, deaf: false };
    } catch (error) {
      fd.close();
      throw error;
    }
    this.#reading = false;
    this.#events?.connected();
  }

  read(into: Uint8Array): number {
    const client = this.#client;
    if (client === undefined || client.silent) return 0;
    const count = readStream(client.fd.number, into);
    if (typeof count === 'number') return count;
    if (count === 'ended') this.#onEnd(client);
    return 0;
  }

  /** A client that only shut down its sending side still gets what the guest writes. */
  #onEnd(client: Client): void {
    if (farSide(client.fd.number).gone) {
      this.#drop();
      return;
    }
    client.silent = true;
    client.watch.wantRead(false);
    this.#watchSilent(client);
  }

  #watchSilent(client: Client): void {
    this.#silentCheck = this.#clock.after(silentPollMs, () => {
      if (farSide(client.fd.number).gone) this.#drop();
      else this.#watchSilent(client);
    });
  }

  write(from: Uint8Array): number {
    const client = this.#client;
    if (client === undefined) return 0;
    const count = client.deaf ? 'ended' : writeStream(client.fd.number, from);
    if (count !== 'ended') return count;
    // The end is told when everything that it sent before has been read.
    client.deaf = true;
    return from.length;
  }

  wantRead(wanted: boolean): void {
    this.#reading = wanted;
    if (this.#client?.silent === false) this.#client.watch.wantRead(wanted);
  }

  wantWrite(wanted: boolean): void {
    this.#client?.watch.wantWrite(wanted);
  }

  hangUp(): void {
    this.#drop();
  }

  #drop(): void {
    const client = this.#client;
    if (client === undefined) return;
    this.#release(client);
    this.#events?.disconnected();
  }

  #release(client: Client): void {
    this.#client = undefined;
    this.#silentCheck?.cancel();
    client.watch.close();
    client.fd.close();
  }

  close(): void {
    this.#events = undefined;
    this.#retry?.cancel();
    this.#accepting?.close();
    if (this.#client !== undefined) this.#release(this.#client);
    this.#listener.close();
  }
}
