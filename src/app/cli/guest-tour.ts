import { createHash } from 'node:crypto';
import { BlkDriver, ConsoleDriver, type DeviceInfo, deviceInfo, type GuestBus, RngDriver } from '../../guest/index.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { CliError, exitCode } from './exit-codes.ts';
import type { GuestArgs } from './guest-args.ts';
import { megabytesPerSecond, Progress } from './guest-output.ts';
import type { CliIo } from './io.ts';

const sector = 512;
const chunkBytes = 512 * 1024;
const scratchDefaultBytes = 16 * 1024 * 1024;
const hotplugDefaultSeconds = 60;

/** A pattern that follows from a seed and a position: xorshift32, started anew in each chunk. */
function patternChunk(seed: number, chunk: number, bytes: number): Uint8Array {
  const words = new Uint32Array(bytes / 4);
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(chunk + 1, 0x85ebca6b)) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return new Uint8Array(words.buffer);
}

/** One visit to a bus: what it does, it prints as a JSON object a line. */
class Tour {
  readonly #bus: GuestBus;
  readonly #args: GuestArgs;
  readonly #io: CliIo;
  #bytes = 0;
  #busyMs = 0;

  constructor(bus: GuestBus, args: GuestArgs, io: CliIo) {
    this.#bus = bus;
    this.#args = args;
    this.#io = io;
  }

  #print(event: string, fields: object = {}): void {
    this.#io.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
  }

  #count(bytes: number, ms: number): { seconds: number; mbPerSecond: number } {
    this.#bytes += bytes;
    this.#busyMs += ms;
    return { seconds: Number((ms / 1000).toFixed(3)), mbPerSecond: megabytesPerSecond(bytes, ms) };
  }

  #progress(device: number, total: number): Progress {
    return new Progress(total, (bytes, all, mbPerSecond) =>
      this.#print('progress', { device, bytes, total: all, mbPerSecond }),
    );
  }

  async run(): Promise<void> {
    const devices = await this.#devices();
    const disks = devices.filter((device) => device.type === deviceId.blk).map((device) => device.number);
    const disk = this.#args.number('disk', 0xffff) ?? disks[0];
    if (disk === undefined) throw new CliError(exitCode.unavailable, 'the bus has no disk');
    await this.#withDisk(disk, (driver) => this.#readDisk(driver));
    const scratch = this.#args.number('scratch', 0xffff) ?? disks.find((number) => number !== disk);
    const written =
      scratch === undefined ? undefined : await this.#withDisk(scratch, (driver) => this.#writeScratch(driver));
    await this.#hotplug(written === undefined ? undefined : { device: scratch, ...written });
    const terminal = devices.find((device) => device.type === deviceId.console);
    if (terminal !== undefined) await this.#console(terminal.number);
    const sources = (await this.#devices(false)).filter((device) => device.type === deviceId.rng);
    for (const { number } of sources) await this.#random(number);
    this.#statistics();
  }

  async #devices(print = true): Promise<DeviceInfo[]> {
    const devices = await Promise.all((await this.#bus.devices()).map((number) => deviceInfo(this.#bus, number)));
    if (print) this.#print('devices', { devices });
    return devices;
  }

  async #withDisk<T>(number: number, use: (driver: BlkDriver) => Promise<T>): Promise<T> {
    const driver = await BlkDriver.open(this.#bus, number);
    try {
      return await use(driver);
    } finally {
      await driver.close();
    }
  }

  /** Reads the whole disk in parallel requests and compares its content and the zeros after it. */
  async #readDisk(disk: BlkDriver): Promise<void> {
    const device = disk.device.info.number;
    const content = this.#args.size('bytes') ?? disk.capacityBytes;
    const wanted = this.#args.sha256();
    const { capacityBytes } = disk;
    this.#print('reading', { device, capacityBytes, readOnly: disk.readOnly, serial: await disk.getId() });
    const hash = createHash('sha256');
    const progress = this.#progress(device, capacityBytes);
    let at = 0;
    let tailZero = true;
    for await (const part of disk.stream({ chunkBytes })) {
      const inside = Math.max(0, Math.min(part.length, content - at));
      hash.update(part.bytes.subarray(0, inside));
      if (inside < part.length) tailZero &&= part.bytes.subarray(inside).every((byte) => byte === 0);
      at += part.length;
      progress.add(part.length);
    }
    const sha256 = hash.digest('hex');
    const sized = capacityBytes === Math.ceil(content / sector) * sector;
    const match = wanted === undefined || wanted === sha256;
    const speed = this.#count(at, progress.elapsedMs);
    this.#print('read', { device, bytes: at, contentBytes: content, sha256, match, tailZero, ...speed });
    if (!match) throw mismatch(`device ${device} has SHA-256 ${sha256}, not ${wanted}`);
    if (!tailZero) throw mismatch(`device ${device} has data after its ${content} bytes`);
    if (!sized) throw mismatch(`device ${device} has ${capacityBytes} bytes for a content of ${content}`);
  }

  /** Writes a pattern, makes it durable and reads it back. */
  async #writeScratch(disk: BlkDriver): Promise<{ bytes: number; sha256: string }> {
    const device = disk.device.info.number;
    const seed = this.#args.number('seed', 0xffff_ffff) ?? 1;
    const most = this.#args.size('scratch-bytes') ?? scratchDefaultBytes;
    const bytes = Math.min(disk.capacityBytes, most - (most % sector));
    const hash = createHash('sha256');
    const progress = this.#progress(device, bytes);
    for (let at = 0, chunk = 0; at < bytes; at += chunkBytes, chunk++) {
      const pattern = patternChunk(seed, chunk, Math.min(chunkBytes, bytes - at));
      hash.update(pattern);
      await disk.write(at / sector, pattern);
      progress.add(pattern.length);
    }
    const sha256 = hash.digest('hex');
    this.#print('wrote', { device, bytes, seed, sha256, ...this.#count(bytes, progress.elapsedMs) });
    await disk.flush();
    this.#print('flushed', { device });
    await this.#verify(disk, bytes, sha256);
    return { bytes, sha256 };
  }

  async #verify(disk: BlkDriver, bytes: number, wanted: string): Promise<void> {
    const device = disk.device.info.number;
    const progress = this.#progress(device, bytes);
    const hash = createHash('sha256');
    for await (const part of disk.stream({ length: bytes, chunkBytes })) {
      hash.update(part.bytes);
      progress.add(part.length);
    }
    const sha256 = hash.digest('hex');
    const speed = this.#count(bytes, progress.elapsedMs);
    this.#print('verified', { device, bytes, sha256, match: sha256 === wanted, ...speed });
    if (sha256 !== wanted) throw mismatch(`device ${device} did not keep what was written`);
  }

  /** Says a line on the console and waits for the line that answers it. */
  async #console(device: number): Promise<void> {
    const driver = await ConsoleDriver.open(this.#bus, device);
    try {
      const port = await driver.port(0);
      await port.open();
      const said = `hello from guest process ${process.pid}`;
      await port.write(Buffer.from(`${said}\n`));
      let heard = '';
      while (!heard.includes('\n')) {
        const bytes = await port.read();
        if (bytes === null) throw new CliError(exitCode.unavailable, 'nobody answers on the console');
        heard += Buffer.from(bytes).toString();
      }
      this.#print('console', { device, said, heard: heard.split('\n')[0] });
    } finally {
      await driver.close();
    }
  }

  /** Waits until one device leaves and one arrives, then uses the latter. */
  async #hotplug(written: { device: number | undefined; bytes: number; sha256: string } | undefined): Promise<void> {
    const timeoutMs = 1000 * (this.#args.number('hotplug-timeout', 3600) ?? hotplugDefaultSeconds);
    const removal = this.#next('removed', timeoutMs);
    // Listens from the start: both events may arrive in one turn.
    const arrival = this.#next('added', 2 * timeoutMs);
    // When the removal fails, that is the error to show.
    arrival.catch(() => undefined);
    this.#print('waiting-for-hotplug');
    const removed = await removal;
    this.#print('removed', { device: removed });
    const added = await arrival;
    const info = await deviceInfo(this.#bus, added);
    this.#print('added', { device: added, type: info.name });
    if (info.type === deviceId.rng) await this.#random(added);
    if (info.type !== deviceId.blk) return;
    await this.#withDisk(added, async (disk) => {
      if (written !== undefined && removed === written.device && disk.capacityBytes >= written.bytes) {
        await this.#verify(disk, written.bytes, written.sha256);
      } else {
        const bytes = await disk.read(0, Math.min(disk.capacityBytes, chunkBytes));
        this.#print('used', { device: added, bytes: bytes.length });
      }
    });
  }

  #next(name: 'removed' | 'added', timeoutMs: number): Promise<number> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        stop();
        stopLost();
        timer.cancel();
      };
      const stop = this.#bus.on(name, ({ device }) => {
        done();
        resolve(device);
      });
      const stopLost = this.#bus.on('lost', (error) => {
        done();
        reject(error);
      });
      const timer = this.#bus.clock.after(timeoutMs, () => {
        done();
        reject(new CliError(exitCode.unavailable, `no device was ${name} in time`));
      });
    });
  }

  async #random(device: number): Promise<void> {
    const rng = await RngDriver.open(this.#bus, device);
    try {
      const bytes = await rng.read(this.#args.size('random') ?? 32);
      const hex = Buffer.from(bytes.subarray(0, 32)).toString('hex');
      this.#print('random', { device, bytes: bytes.length, hex });
    } finally {
      await rng.close();
    }
  }

  #statistics(): void {
    const { messagesIn, messagesOut, doorbellsIn, doorbellsOut, ...rest } = this.#bus.statistics;
    this.#print('statistics', {
      messages: messagesIn + messagesOut,
      messagesIn,
      messagesOut,
      doorbells: doorbellsIn + doorbellsOut,
      doorbellsIn,
      doorbellsOut,
      ...rest,
      bytes: this.#bytes,
      mbPerSecond: megabytesPerSecond(this.#bytes, this.#busyMs),
    });
  }
}

const mismatch = (what: string): CliError => new CliError(exitCode.dataMismatch, what);

/** The guest half of the demo. */
export async function runTour(bus: GuestBus, args: GuestArgs, io: CliIo): Promise<undefined> {
  await new Tour(bus, args, io).run();
}
