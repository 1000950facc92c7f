import type { Closable } from '../../../kit/scope.ts';
import type { Poller, Watch } from '../../../libc/poll.ts';

/** Both directions of one descriptor, each watched only while that is wanted. */
export class StreamWatch implements Closable {
  readonly #read: Watch;
  readonly #write: Watch;

  /** @throws SystemCallError */
  constructor(poller: Poller, fd: number, onReadable: () => void, onWritable: () => void) {
    this.#read = poller.watch(fd, onReadable);
    this.#read.pause();
    try {
      this.#write = poller.watchWritable(fd, onWritable);
      this.#write.pause();
    } catch (error) {
      this.#read.close();
      throw error;
    }
  }

  wantRead(wanted: boolean): void {
    if (wanted) this.#read.resume();
    else this.#read.pause();
  }

  wantWrite(wanted: boolean): void {
    if (wanted) this.#write.resume();
    else this.#write.pause();
  }

  close(): void {
    this.#read.close();
    this.#write.close();
  }
}
