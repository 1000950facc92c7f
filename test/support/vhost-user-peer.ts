import { Fd, type ForeignFd } from '../../src/libc/fd.ts';
import type { Messenger } from '../../src/libc/messenger.ts';
import type { Poller, Watch } from '../../src/libc/poll.ts';
import { connectUnix, UnixListener } from '../../src/libc/unix-socket.ts';
import { BackEnd } from '../../src/vhost-user/back-end.ts';
import type { MessageChannel } from '../../src/vhost-user/channel.ts';
import type { ServedDevice } from '../../src/vhost-user/served-device.ts';
import { SocketChannel } from '../../src/vhost-user/socket.ts';

/** Bytes that a peer sends in place of an answer. */
const garbage = Uint8Array.from({ length: 64 }, (_, i) => (i * 37 + 11) & 0xff);

/** How a back-end treats whoever connects. */
export type Manners = 'serve' | 'hang' | 'hang up' | 'babble';

/** A vhost-user back-end in this process, which comes and goes as a test says. */
export class VhostUserPeer {
  readonly path: string;
  manners: Manners = 'serve';
  /** What those who connect from now on get. */
  device: ServedDevice;
  /** Connections that were accepted. */
  accepted = 0;
  /** Stands between a connection and who serves it. */
  between: (channel: MessageChannel) => MessageChannel = (channel) => channel;
  readonly #poller: Poller;
  readonly #messenger: Messenger;
  #listener: UnixListener | undefined;
  #watch: Watch | undefined;
  readonly #open = new Set<{ close(): void }>();

  constructor(path: string, device: ServedDevice, poller: Poller, messenger: Messenger) {
    this.path = path;
    this.device = device;
    this.#poller = poller;
    this.#messenger = messenger;
  }

  listen(): void {
    const listener = UnixListener.listen(this.path, { mode: 0o600, backlog: 4, type: 'stream' });
    this.#listener = listener;
    this.#watch = this.#poller.watch(listener.fd.number, () => {
      const fd = listener.accept();
      if (fd !== undefined) this.#accept(fd);
    });
  }

  #accept(foreign: Fd): void {
    this.accepted += 1;
    const fd = new Fd(foreign.release());
    if (this.manners === 'hang up') fd.close();
    else if (this.manners === 'hang') this.#open.add(fd);
    else if (this.manners === 'babble') {
      this.#messenger.sendSome(fd.number, garbage, []);
      this.#open.add(fd);
    } else {
      const open = (number: ForeignFd) => new SocketChannel(new Fd(number.release()), this.#messenger, this.#poller);
      const channel = this.between(new SocketChannel(fd, this.#messenger, this.#poller));
      this.#open.add(new BackEnd(channel, this.device, open));
    }
  }

  /** Connects to a front-end that listens at the path. @returns false when none does */
  call(): boolean {
    const fd = connectUnix(this.path, 'stream');
    if (!(fd instanceof Fd)) return false;
    this.#accept(fd);
    return true;
  }

  /** Tells every front-end. */
  configChanged(): void {
    for (const each of this.#open) if (each instanceof BackEnd) each.configChanged();
  }

  /** Ends every connection. It goes on listening. */
  hangUp(): void {
    for (const each of this.#open) each.close();
    this.#open.clear();
  }

  /** Ends every connection, and listens no more. */
  leave(): void {
    this.#watch?.close();
    this.#listener?.close();
    this.#watch = undefined;
    this.#listener = undefined;
    this.hangUp();
  }
}
