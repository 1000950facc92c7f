import assert from 'node:assert/strict';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { ConsoleLog } from './console-log.ts';
import { tool, xl } from './dom0.ts';

const configDirectory = '/run/xen/test-domains';
const readyWithinMs = 60_000;
const blockScript = '/app/deploy/qemu/guest/block';

export interface DomainOptions {
  /** MiB, 192 by default. */
  readonly memoryMiB?: number;
  /** The domain is there but does not run before `unpause`. */
  readonly paused?: boolean;
  /** More lines of its xl configuration. */
  readonly config?: readonly string[];
}

/** A shell command that a domU runs, in /app. */
export interface DomainCommand {
  /** Every line of stdout and stderr until now. */
  readonly lines: readonly string[];
  /** Called for the lines that are there, and for each one that comes. */
  onLine(listener: (line: string) => void): void;
  /** Exit status, 128 + n after a signal. Fails when the domain goes first. */
  readonly ended: Promise<number>;
  /** Sends a signal, `TERM` by default, to the command and all that it started. */
  kill(signal?: string): Promise<void>;
}

function configOf(name: string, { memoryMiB = 192, config = [] }: DomainOptions): string {
  const disk = (device: string, loop: string): string =>
    `"format=raw,vdev=${device},access=r,script=${blockScript},target=/dev/${loop}"`;
  return [
    `name = "${name}"`,
    'kernel = "/boot/kernel"',
    'ramdisk = "/boot/initramfs"',
    `memory = ${memoryMiB}`,
    'vcpus = 1',
    `disk = [ ${disk('xvda', 'loop0')}, ${disk('xvdb', 'loop1')} ]`,
    'extra = "console=hvc0 loglevel=3 panic=1 nokaslr kpti=off mitigations=off init_on_alloc=0 hardened_usercopy=off cma=0 cryptomgr.notests lsm=capability audit=0 rdinit=/init vmsg.disk=xvd vmsg.mode=domu"',
    ...['on_poweroff', 'on_reboot', 'on_crash'].map((event) => `${event} = "destroy"`),
    ...config,
    '',
  ].join('\n');
}

/** Starts a domU that runs the same system as dom0. @returns when it takes commands; at once if it is paused */
export async function createDomain(name: string, options: DomainOptions = {}): Promise<Domain> {
  mkdirSync(configDirectory, { recursive: true });
  const file = `${configDirectory}/${name}.cfg`;
  writeFileSync(file, configOf(name, options));
  const console = new ConsoleLog(name);
  try {
    await xl('create', '-q', ...(options.paused ? ['-p'] : []), file);
    const domid = Number(await xl('domid', name));
    const domain = new Domain(name, domid, console);
    if (!options.paused) await domain.ready();
    return domain;
  } catch (error) {
    console.close();
    throw error;
  } finally {
    rmSync(file);
  }
}

/** A domain, or dom0 itself. */
export interface CommandPlace {
  readonly name: string;
  /** Starts a shell command; any number run at the same time. */
  start(command: string): Promise<DomainCommand>;
}

/** One that was started; whoever started it tells what it prints and how it ends. */
export class Command implements DomainCommand {
  readonly lines: string[] = [];
  readonly ended: Promise<number>;
  readonly #kill: (signal: string) => Promise<void>;
  readonly #listeners: ((line: string) => void)[] = [];
  #settle!: { resolve: (code: number) => void; reject: (error: Error) => void };

  constructor(kill: (signal: string) => Promise<void>) {
    this.#kill = kill;
    this.ended = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    // Whoever does not wait for the end need not learn that the domain went.
    this.ended.catch(() => {});
  }

  onLine(listener: (line: string) => void): void {
    this.lines.forEach(listener);
    this.#listeners.push(listener);
  }

  kill(signal = 'TERM'): Promise<void> {
    return this.#kill(signal);
  }

  line(text: string): void {
    this.lines.push(text);
    for (const listener of this.#listeners) listener(text);
  }

  end(code: number): void {
    this.#settle.resolve(code);
  }

  fail(error: Error): void {
    this.#settle.reject(error);
  }
}

/** A domU. Its agent (deploy/qemu/guest/domu.sh) takes commands from xenstore and answers on its console. */
export class Domain implements CommandPlace {
  readonly name: string;
  readonly domid: number;
  readonly #console: ConsoleLog;
  readonly #commands = new Map<string, Command>();
  readonly #ready: Promise<void>;
  #isReady!: () => void;

  constructor(name: string, domid: number, console: ConsoleLog) {
    this.name = name;
    this.domid = domid;
    this.#console = console;
    this.#ready = new Promise((resolve) => {
      this.#isReady = resolve;
    });
    console.onLine((line) => this.#take(line));
  }

  /** What the domU has printed, commands and kernel. */
  get consoleText(): string {
    return this.#console.text;
  }

  /** Waits until the domU takes commands. */
  async ready(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const fail = (): void =>
        reject(new Error(`${this.name} is not ready in time; its console:\n${this.consoleText}`));
      timer = setTimeout(fail, readyWithinMs);
    });
    await Promise.race([this.#ready, late]).finally(() => clearTimeout(timer));
  }

  /** Runs a shell command to its end. */
  async run(command: string): Promise<{ code: number; output: string }> {
    const running = await this.start(command);
    const code = await running.ended;
    return { code, output: running.lines.map((line) => `${line}\n`).join('') };
  }

  /** Starts a shell command, at most 2 KiB long; any number run at the same time. */
  async start(command: string): Promise<DomainCommand> {
    const number = String(this.#commands.size + 1);
    const agent = `/local/domain/${this.domid}/data/agent`;
    const kill = async (signal: string): Promise<void> => {
      await tool('xenstore-write', `${agent}/kill/${number}`, signal);
    };
    const started = new Command(kill);
    this.#commands.set(number, started);
    await tool('xenstore-write', `${agent}/run/${number}`, command);
    return started;
  }

  async pause(): Promise<void> {
    await xl('pause', this.name);
  }

  async unpause(): Promise<void> {
    await xl('unpause', this.name);
  }

  /** Asks the domU to end and waits until it is gone. */
  async shutdown(): Promise<void> {
    await xl('shutdown', '-w', this.name);
    this.#gone();
  }

  /** Ends the domU at once. Does nothing if it is gone. */
  async destroy(): Promise<void> {
    try {
      await xl('destroy', String(this.domid));
    } catch (error) {
      assert.doesNotMatch(await xl('list'), new RegExp(`^${this.name} +${this.domid} `, 'm'), String(error));
    }
    this.#gone();
  }

  #gone(): void {
    this.#console.close();
    for (const command of this.#commands.values()) command.fail(new Error(`the domain ${this.name} is gone`));
  }

  #take(line: string): void {
    if (line === '@ready') this.#isReady();
    const [, number, kind, rest] = /^@(\d+)([:=])(.*)$/.exec(line) ?? [];
    const command = this.#commands.get(number ?? '');
    if (kind === ':') command?.line(rest ?? '');
    else if (kind === '=') command?.end(Number(rest));
  }
}
