import type { Closable } from '../kit/scope.ts';
import { callFailed, checkedHandle } from './handle.ts';
import { takeText, type XenLibraries } from './native.ts';

/** Xen's security module. 'silo' keeps guests apart from each other; 'flask' has a policy of its own. */
export type XsmMode = 'silo' | 'dummy' | 'flask' | 'unknown';

export interface XsmVerdict {
  readonly mode: XsmMode;
  /** How it is known, a sentence. */
  readonly reason: string;
}

/** What Xen says of itself to dom0. */
export interface XenControl extends Closable {
  /** Xen's own command line (libxenctrl). @throws HypervisorError */
  commandLine(): string;
  /** The .config that Xen was built with (libxenhypfs); undefined when it does not keep it. */
  buildConfig(): string | undefined;
}

const commandLineCommand = 9;
const commandLineBytes = 1024;
const configPath = '/buildinfo/config';

export class XenInterface implements XenControl {
  readonly #libraries: XenLibraries;
  readonly #handle: number;
  #closed = false;

  /** @throws HypervisorError */
  constructor(libraries: XenLibraries) {
    this.#libraries = libraries;
    const { open, logger } = libraries.control;
    this.#handle = checkedHandle(open(logger, logger, 0), 'xc_interface_open', '/dev/xen/privcmd');
  }

  commandLine(): string {
    const bytes = new Uint8Array(commandLineBytes);
    const result = this.#libraries.control.version(this.#handle, commandLineCommand, bytes);
    if (result < 0) callFailed('xc_version(commandline)');
    const end = bytes.indexOf(0);
    return new TextDecoder('latin1').decode(bytes.subarray(0, end < 0 ? bytes.length : end));
  }

  buildConfig(): string | undefined {
    const { open, read, close, logger } = this.#libraries.facts;
    const handle = open(logger, 0);
    if (handle === 0) return undefined;
    const text = read(handle, configPath);
    close(handle);
    return text === 0 ? undefined : takeText(text);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#libraries.control.close(this.#handle);
  }
}

/**
 * Finds out which security module Xen runs. A trial would show nothing: SILO lets dom0 do for two guests what it
 * refuses to them, and a refused mapping looks like one of a reference that does not exist.
 */
export class XsmDetector {
  readonly #control: XenControl;
  #verdict: XsmVerdict | undefined;

  constructor(control: XenControl) {
    this.#control = control;
  }

  /** Stays true until the machine reboots. @throws HypervisorError */
  verdict(): XsmVerdict {
    this.#verdict ??= fromCommandLine(this.#control.commandLine()) ?? fromBuildConfig(this.#control.buildConfig());
    return this.#verdict;
  }
}

const isMode = (word: string | undefined): word is 'silo' | 'dummy' | 'flask' =>
  word === 'silo' || word === 'dummy' || word === 'flask';

/** The last word that Xen knows counts, as Xen reads it. */
function fromCommandLine(text: string): XsmVerdict | undefined {
  const mode = [...text.matchAll(/(?:^|\s)xsm=(\S*)/g)].map((match) => match[1]).findLast(isMode);
  return mode && { mode, reason: `xsm=${mode} on Xen's command line` };
}

function fromBuildConfig(text: string | undefined): XsmVerdict {
  const silence = "Xen's command line has no xsm=";
  if (text === undefined) return { mode: 'unknown', reason: `${silence}, and Xen does not say how it was built` };
  const chosen = /^CONFIG_XSM_(SILO|DUMMY|FLASK)_DEFAULT=y$/m.exec(text)?.[1]?.toLowerCase();
  if (isMode(chosen)) return { mode: chosen, reason: `${silence}, and Xen was built with ${chosen} as the default` };
  return /^CONFIG_XSM=y$/m.test(text)
    ? { mode: 'unknown', reason: `${silence}, and the configuration that Xen was built with names no default` }
    : { mode: 'dummy', reason: 'Xen was built without security modules' };
}
