import { closeSync, type FSWatcher, fstatSync, openSync, readSync, watch, writeFileSync } from 'node:fs';
import { StringDecoder } from 'node:string_decoder';

const directory = '/var/log/xen/console';
const chunkBytes = 64 * 1024;

/** Follows what xenconsoled writes down of one domain's console, from now on. */
export class ConsoleLog {
  readonly #fd: number;
  readonly #watcher: FSWatcher;
  readonly #decoder = new StringDecoder();
  readonly #buffer = Buffer.alloc(chunkBytes);
  #listener: (line: string) => void = () => {};
  #offset: number;
  #text = '';
  #lineStart = 0;
  #closed = false;

  /** @param name of a domain that is not there yet; xenconsoled appends to the file that is made here */
  constructor(name: string) {
    const file = `${directory}/guest-${name}.log`;
    writeFileSync(file, '', { flag: 'a' });
    this.#fd = openSync(file, 'r');
    this.#offset = fstatSync(this.#fd).size;
    this.#watcher = watch(file, () => this.#read());
  }

  /** Everything until now. */
  get text(): string {
    return this.#text;
  }

  /** Called for the lines that are there, and for each one that comes. There is one listener. */
  onLine(listener: (line: string) => void): void {
    this.#listener = listener;
    this.#read();
    this.#lines();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher.close();
    closeSync(this.#fd);
  }

  #read(): void {
    for (;;) {
      const length = readSync(this.#fd, this.#buffer, 0, chunkBytes, this.#offset);
      if (length === 0) break;
      this.#offset += length;
      this.#text += this.#decoder.write(this.#buffer.subarray(0, length));
    }
    this.#lines();
  }

  #lines(): void {
    for (let end = this.#text.indexOf('\n', this.#lineStart); end !== -1; end = this.#text.indexOf('\n', end + 1)) {
      const line = this.#text.slice(this.#lineStart, end).replace(/\r$/, '');
      this.#lineStart = end + 1;
      this.#listener(line);
    }
  }
}
