import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Resource } from '../../src/bridge/commands.ts';
import { connect, deviceInfo, type GuestBus, offeredFeatures, VirtioDevice, VmsgError } from '../../src/guest/index.ts';
import { backendCommands } from '../support/backend-programs.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';
import { misuse } from './misuse.ts';

/** A driver of a guest that does what its device is for. */
export interface Job {
  /** Uses the device and checks what comes of it. @throws VmsgError once the device has gone */
  run(): Promise<void>;
  /** Resets the device. Never rejects. */
  close(): Promise<void>;
}

/** A backend, and how its program is started and ended. */
export interface Subject {
  /** The backend as the service is told. */
  readonly attachSpec: object;
  /** Of the device, as a guest has to find it. */
  readonly device: {
    readonly name: string;
    readonly queues: number;
    /** Bits of the device type that are offered in any case. */
    readonly features: readonly number[];
    readonly config: (bytes: Uint8Array) => void;
  };
  readonly dataPath: NonNullable<Resource<'attachments'>['status']>['dataPath'];
  /** Makes sure that the program runs. Nothing, for a backend without one. */
  start(): Promise<void>;
  /** Ends the program at once; absent for a backend without one. */
  readonly kill?: () => Promise<void>;
  /** The same driver goes on after the program was started anew. */
  readonly survivesKill: boolean;
  /** The service starts a program for it. */
  readonly isProgram?: boolean;
  open(bus: GuestBus, number: number): Promise<Job>;
  /** The suite is over: ends whatever still runs. */
  close(): Promise<void>;
}

const number = 3;
/** A request that is lost ends a test instead of the run. */
const bounded = { timeout: 120_000 };
const kills = 3;

/** One service with one subject, and a guest. */
class Bench {
  readonly home: ServiceHome;
  readonly subject: Subject;
  service!: ServiceProcess;
  #buses: GuestBus[] = [];

  constructor(make: (directory: string) => Subject) {
    const objects = {
      domains: { guest: {} },
      buses: { bus: { domain: 'guest', transport: 'loopback', role: 'driver' } },
    };
    this.home = new ServiceHome({ ...objects, backends: {}, attachments: {} }, { programs: backendCommands() });
    this.subject = make(this.home.directory);
  }

  async start(): Promise<void> {
    this.service = await this.home.start();
    await this.subject.start();
    await this.service.api.call('PUT', '/v1/backends/it', this.subject.attachSpec);
    await this.attach();
  }

  async attach(): Promise<void> {
    await this.service.api.call('PUT', '/v1/attachments/it', { bus: 'bus', backend: 'it', deviceNumber: number });
  }

  async detach(): Promise<void> {
    await this.service.api.call('DELETE', '/v1/attachments/it');
  }

  async status() {
    return (await this.service.attachment('it')).status;
  }

  /** A program that ended is started anew for that. */
  async active() {
    return await eventually(async () => {
      await this.subject.start();
      const status = await this.status();
      return status.state === 'active' ? status : undefined;
    }, 'the attachment is active');
  }

  /** For a device that may just be leaving, with its program, or coming back. */
  async persist<T>(use: () => Promise<T>): Promise<T> {
    return await eventually(async () => {
      await this.active();
      return await use().catch((error) => {
        if (!isVmsgError(error)) throw error;
        return undefined;
      });
    }, 'the device can be used again');
  }

  async bus(): Promise<GuestBus> {
    const bus = await connect({ path: this.home.busPath('bus') });
    this.#buses.push(bus);
    return bus;
  }

  async job(bus: GuestBus): Promise<Job> {
    await this.active();
    return await this.subject.open(bus, number);
  }

  /** Takes the device, uses it and gives it back. */
  async useOnce(bus: GuestBus): Promise<true> {
    const job = await this.job(bus);
    await job.run();
    await job.close();
    return true;
  }

  closeBuses(): void {
    for (const bus of this.#buses.splice(0)) bus.close();
  }

  async close(): Promise<void> {
    this.closeBuses();
    await this.subject.close();
    await this.service.kill();
    this.home.remove();
  }
}

/**
 * What every backend has to fulfil through the service, for a guest with the real program behind it.
 * @param make in a directory of its own, which goes with the suite
 */
export function programContract(name: string, make: (directory: string) => Subject): void {
  describe(`through the service: ${name}`, () => {
    const bench = new Bench(make);
    before(() => bench.start());
    afterEach(() => bench.closeBuses());
    after(() => bench.close());
    lifeTests(bench);
    misuseTests(bench);
    if (bench.subject.kill !== undefined) killTests(bench, bench.subject.kill);
  });
}

function lifeTests(bench: Bench): void {
  test('it becomes active and describes its device', bounded, async () => {
    const { device, dataPath } = bench.subject;
    const status = await bench.active();
    assert.deepEqual([status.deviceType, status.dataPath, status.reason], [device.name, dataPath, null]);
    const bus = await bench.bus();
    const info = await deviceInfo(bus, number);
    assert.deepEqual([info.name, info.maxVirtqueues], [device.name, device.queues]);
    const offered = await offeredFeatures(bus, info);
    assert.deepEqual(
      device.features.filter((bit) => !offered.has(bit)),
      [],
    );
    const opened = await VirtioDevice.open(bus, number);
    device.config(await opened.config.read(0, opened.config.size));
    await opened.close();
  });

  test('it does what it is for, again and again', bounded, async () => {
    const job = await bench.job(await bench.bus());
    for (let i = 0; i < 5; i++) await job.run();
    await job.close();
  });

  test('a driver may reset the device and take it again', bounded, async () => {
    const bus = await bench.bus();
    for (let i = 0; i < 5; i++) await bench.useOnce(bus);
  });

  test('a guest may go while it uses the device, and come back', bounded, async () => {
    for (let i = 0; i < 3; i++) {
      const bus = await bench.bus();
      const job = await bench.job(bus);
      const running = job.run();
      running.catch(() => {});
      bus.close();
      await assert.rejects(Promise.all([running, job.run()]));
      await job.close();
      await bench.useOnce(await bench.bus());
      bench.closeBuses();
    }
  });

  test('it can be detached from a guest that uses it, and attached again', bounded, async () => {
    const bus = await bench.bus();
    for (let i = 0; i < 3; i++) {
      const job = await bench.job(bus);
      await job.run();
      const removed = new Promise((resolve) => bus.on('removed', resolve));
      await bench.detach();
      assert.deepEqual(await removed, { device: number });
      await assert.rejects(job.run(), isVmsgError);
      await job.close();
      await bench.subject.start();
      await bench.attach();
      await bench.useOnce(bus);
    }
  });
}

const isVmsgError = (error: unknown): boolean => error instanceof VmsgError;

function misuseTests(bench: Bench): void {
  test('wrong requests of a guest harm nobody but itself', bounded, async () => {
    const { pid } = bench.service;
    const bus = await bench.bus();
    for (let queue = 0; queue < bench.subject.device.queues; queue++) {
      const open = () => bench.persist(() => VirtioDevice.open(bus, number));
      // A program that works on the guest's memory may have to be ended and started anew after each.
      await misuse(open, queue, bench.subject.dataPath === 'direct' && bench.subject.isProgram ? 5 : 1);
      await bench.persist(() => bench.useOnce(bus));
    }
    assert.ok(bench.service.alive && bench.service.pid === pid);
  });
}

function killTests(bench: Bench, kill: () => Promise<void>): void {
  test('a program that is killed while it is used is seen to be away, and works when it is back', bounded, async () => {
    const { survivesKill } = bench.subject;
    const bus = await bench.bus();
    let job = await bench.job(bus);
    for (let i = 0; i < kills; i++) {
      await job.run();
      const running = keepRunning(job);
      await sleep(20);
      await kill();
      const away = await eventually(async () => {
        const status = await bench.status();
        return status.state === 'active' ? undefined : status;
      }, 'it is seen');
      assert.equal(away.state, survivesKill ? 'degraded' : 'failed');
      assert.match(away.reason ?? '', /the back-end at .* (is away|has gone): |nobody listens|no such socket/);
      if (survivesKill) {
        await bench.active();
        await running.stop();
      } else {
        // By whatever of the job notices first; programs of the host do, too.
        await assert.rejects(running.stop());
        await job.close();
        job = await bench.job(bus);
      }
      await job.run();
    }
    await job.close();
  });
}

/** Runs a job over and over. */
function keepRunning(job: Job): { stop(): Promise<void> } {
  let going = true;
  const run = async (): Promise<void> => {
    do await job.run();
    while (going);
  };
  const running = run();
  running.catch(() => {});
  return {
    stop: () => {
      going = false;
      return running;
    },
  };
}
