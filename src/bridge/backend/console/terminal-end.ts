import { lstatSync, readlinkSync, renameSync, rmSync, symlinkSync, unlinkSync } from 'node:fs';
import type { Clock, Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import { farSide, readStream, writeStream } from '../../../libc/byte-stream.ts';
import type { Poller } from '../../../libc/poll.ts';
import { openPseudoTerminal, type PseudoTerminal, type WindowSize, windowSize } from '../../../libc/pty.ts';
import type { HostEnd, HostEndEvents } from './host-end.ts';
import { StreamWatch } from './stream-watch.ts';

const terminalPrefix = '/dev/pts/';

/** In one step: there is a terminal behind the link at any time. */
function replaceLink(link: string, target: string): void {
  const temporary = `${link}.new`;
  // Left by a service that was killed in between.
  rmSync(temporary, { force: true });
  symlinkSync(target, temporary);
  try {
    renameSync(temporary, link);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

/**
 * A pseudo terminal behind a symbolic link. The kernel does not tell when a program opens it, closes it while nobody
 * reads, or changes its window size: it is looked at at a bounded rate.
 */
export class TerminalEnd implements HostEnd {
  readonly #link: string;
  readonly #poller: Poller;
  readonly #clock: Clock;
  #size: WindowSize;
  #terminal: PseudoTerminal;
  #watch: StreamWatch;
  #events: HostEndEvents | undefined;
  #connected = false;
  #poll: Timer | undefined;

  private constructor(link: string, size: WindowSize, poller: Poller, clock: Clock) {
    this.#link = link;
    this.#size = size;
    this.#poller = poller;
    this.#clock = clock;
    [this.#terminal, this.#watch] = this.#make();
  }

  /** @param link path of the symbolic link to the terminal. @throws VmsgError backend-unusable */
  static open(link: string, size: WindowSize, poller: Poller, clock: Clock): TerminalEnd {
    try {
      const stat = lstatSync(link, { throwIfNoEntry: false });
      if (stat !== undefined && !(stat.isSymbolicLink() && readlinkSync(link).startsWith(terminalPrefix))) {
        throw new Error('exists and is no link to a terminal');
      }
      return new TerminalEnd(link, size, poller, clock);
    } catch (error) {
      throw new VmsgError('backend-unusable', `${link}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  #make(): [PseudoTerminal, StreamWatch] {
    const terminal = openPseudoTerminal(this.#size);
    try {
      const watch = new StreamWatch(
        this.#poller,
        terminal.fd.number,
        () => this.#events?.readable(),
        () => this.#events?.writable(),
      );
      try {
        replaceLink(this.#link, terminal.path);
      } catch (error) {
        watch.close();
        throw error;
      }
      return [terminal, watch];
    } catch (error) {
      terminal.fd.close();
      throw error;
    }
  }

  get connected(): boolean {
    return this.#connected;
  }

  start(events: HostEndEvents): void {
    this.#events = events;
    this.#planLook();
  }

  #planLook(): void {
    this.#poll = this.#clock.after(limits.consoleTerminalPollMs, () => {
      this.#look();
      if (this.#events !== undefined) this.#planLook();
    });
  }

  #look(): void {
    // A program that has left is noticed while reading, after what it wrote.
    if (!this.#connected && !farSide(this.#terminal.fd.number).gone) {
      this.#connected = true;
      this.#events?.connected();
    }
    if (this.#connected) this.#lookAtSize();
  }

  #lookAtSize(): void {
    const size = windowSize(this.#terminal.fd.number);
    if (size.columns === this.#size.columns && size.rows === this.#size.rows) return;
    this.#size = size;
    this.#events?.resized(size);
  }

  read(into: Uint8Array): number {
    if (!this.#connected) return 0;
    const count = readStream(this.#terminal.fd.number, into);
    if (typeof count === 'number') return count;
    if (count === 'ended') this.#drop();
    return 0;
  }

  write(from: Uint8Array): number {
    if (!this.#connected) return 0;
    const count = writeStream(this.#terminal.fd.number, from);
    // The end is told when everything that the program wrote before has been read.
    return count === 'ended' ? from.length : count;
  }

  wantRead(wanted: boolean): void {
    // A terminal that nobody has open is readable all the time.
    this.#watch.wantRead(wanted && this.#connected);
  }

  wantWrite(wanted: boolean): void {
    this.#watch.wantWrite(wanted && this.#connected);
  }

  #drop(): void {
    this.#connected = false;
    this.#watch.wantRead(false);
    this.#watch.wantWrite(false);
    this.#events?.disconnected();
  }

  /** The program gets SIGHUP and the end of the file; who opens the link again finds a new terminal. */
  hangUp(): void {
    if (!this.#connected) return;
    const [before, watch] = [this.#terminal, this.#watch];
    try {
      [this.#terminal, this.#watch] = this.#make();
    } catch {
      // No other terminal can be had: the program keeps this one.
      return;
    }
    watch.close();
    before.fd.close();
    this.#drop();
  }

  close(): void {
    this.#events = undefined;
    this.#connected = false;
    this.#poll?.cancel();
    this.#watch.close();
    const { path, fd } = this.#terminal;
    try {
      if (readlinkSync(this.#link) === path) unlinkSync(this.#link);
    } catch {
      // Somebody else removed or replaced it.
    }
    fd.close();
  }
}
