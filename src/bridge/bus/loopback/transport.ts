import type { Clock } from '../../../kit/clock.ts';
import { limits } from '../../../kit/limits.ts';
import { Scope } from '../../../kit/scope.ts';
import type { Fd } from '../../../libc/fd.ts';
import { Messenger } from '../../../libc/messenger.ts';
import type { Poller } from '../../../libc/poll.ts';
import { peerCredentials, UnixListener } from '../../../libc/unix-socket.ts';
import type { BusTransport, BusTransportHandler, GuestIdentity } from '../../../ports/bus.ts';
import { LoopbackConnection, refuse } from './connection.ts';

export interface LoopbackTransportOptions {
  readonly socketPath: string;
  readonly socketMode: number;
  readonly admittedUids: readonly number[];
  readonly domid: number;
  readonly role: 'driver' | 'device';
  readonly maxMessageSizeBytes: number;
  readonly ringMaxBytes: number;
  readonly revision: number;
  readonly dialect: number;
  readonly poller: Poller;
  readonly clock: Clock;
}

const backlog = 16;
const acceptsPerTurn = 16;
const exhaustedRetryMs = 1_000;

/** A bus on a Unix socket: who may connect is decided by SO_PEERCRED, one guest at a time. */
export class LoopbackTransport implements BusTransport {
  readonly #o: LoopbackTransportOptions;
  readonly #scope = new Scope();
  readonly #messenger: Messenger;
  #handler: BusTransportHandler | undefined;
  #current: LoopbackConnection | undefined;

  constructor(options: LoopbackTransportOptions) {
    this.#o = options;
    this.#messenger = this.#scope.own(new Messenger(limits.handshakeMessageMaxBytes, limits.fdsPerMessage));
  }

  get state(): 'listening' | 'handshake' | 'connected' {
    if (this.#current === undefined) return 'listening';
    return this.#current.ready ? 'connected' : 'handshake';
  }

  /** @throws SystemCallError, VmsgError when the socket cannot be made */
  start(handler: BusTransportHandler): void {
    this.#handler = handler;
    const { socketPath, socketMode, poller, clock } = this.#o;
    const listener = this.#scope.own(UnixListener.listen(socketPath, { mode: socketMode, backlog }));
    const watch = this.#scope.own(
      poller.watch(listener.fd.number, () => {
        try {
          this.#accept(listener);
        } catch {
          // Out of descriptors or memory: those that wait keep waiting, and this must not spin.
          watch.pause();
          const timer = clock.after(exhaustedRetryMs, () => watch.resume());
          this.#scope.defer(() => timer.cancel());
        }
      }),
    );
  }

  #accept(listener: UnixListener): void {
    for (let i = 0; i < acceptsPerTurn; i++) {
      const socket = listener.accept();
      if (socket === undefined) return;
      try {
        this.#onGuest(socket);
      } catch (error) {
        socket.close();
        throw error;
      }
    }
  }

  #onGuest(socket: Fd): void {
    const peer = peerCredentials(socket.number);
    const reject = (error: 'EACCES' | 'EBUSY', reason: string): void => {
      refuse(this.#messenger, socket, error, reason);
      socket.close();
      this.#handler!.refused(peer, reason);
    };
    if (!this.#o.admittedUids.includes(peer.uid)) {
      reject('EACCES', `user ${peer.uid} is not admitted to this bus`);
      return;
    }
    // A guest that has just ended may still have its last packet on the socket: see it first.
    this.#current?.poll();
    if (this.#current !== undefined) reject('EBUSY', 'the bus has a guest already');
    else this.#begin(socket, peer);
  }

  #begin(socket: Fd, peer: GuestIdentity): void {
    const handler = this.#handler!;
    const connection = new LoopbackConnection({
      socket,
      messenger: this.#messenger,
      poller: this.#o.poller,
      clock: this.#o.clock,
      domid: this.#o.domid,
      role: this.#o.role,
      maxMessageSizeBytes: this.#o.maxMessageSizeBytes,
      ringMaxBytes: this.#o.ringMaxBytes,
      revision: this.#o.revision,
      dialect: this.#o.dialect,
      admit: (claim) => handler.admit(claim),
      onReady: (ready) => handler.connected(ready, peer),
      onClosed: (reason, wasReady) => {
        this.#current = undefined;
        if (reason === undefined) return;
        if (wasReady) handler.disconnected(reason);
        else handler.refused(peer, reason);
      },
    });
    this.#current = connection;
    connection.start();
  }

  close(): void {
    this.#current?.close();
    this.#scope.close();
  }
}
