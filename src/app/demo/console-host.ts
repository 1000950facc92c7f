import { connect, type Socket } from 'node:net';
import type { Closable } from '../../kit/scope.ts';

/** The person at the other end of a console: answers each line that the guest says. */
export class ConsoleHost implements Closable {
  readonly #socket: Socket;
  #rest = '';

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text) => this.#onText(String(text)));
    // The service ends before this does: what it leaves unread is of no interest.
    socket.on('error', () => socket.destroy());
  }

  /** @param path socket of the console's port */
  static open(path: string): Promise<ConsoleHost> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new ConsoleHost(socket));
      });
    });
  }

  #onText(text: string): void {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) this.#socket.write(`the host read ${line.length} characters\n`);
  }

  close(): void {
    this.#socket.destroy();
  }
}
