import type { LaneAttachSpec } from '../../src/bridge/lane/protocol.ts';
import { sectorBytes } from '../../src/virtio/blk.ts';
import { SimDisk } from './sim-disk.ts';
import { SimBlkDriver, SimRngDriver } from './sim-drivers.ts';
import { SimGuest } from './sim-guest.ts';
import { SimHostileGuest } from './sim-hostile.ts';
import { SimLoop } from './sim-loop.ts';
import { DiskModel, stamp } from './sim-model.ts';
import type { SimQueueDriver } from './sim-queue-driver.ts';
import { SimBus, SimService } from './sim-service.ts';
import type { SimNoise } from './sim-transport.ts';

export type SimMode = 'clean' | 'lossy' | 'corrupting';

/** What happened in a run, to show that it was worth something. */
export interface SimStatistics {
  steps: number;
  simulatedMs: number;
  requests: number;
  ios: number;
  resets: number;
  queueResets: number;
  resumes: number;
  kills: number;
  shutdowns: number;
  guestDeaths: number;
  hotplugs: number;
  epochs: number;
}

interface Place {
  readonly bus: SimBus;
  guest: SimGuest | undefined;
}

const noises: Readonly<Record<SimMode, SimNoise>> = {
  clean: { drop: 0, corrupt: 0 },
  lossy: { drop: 0.02, corrupt: 0 },
  corrupting: { drop: 0.01, corrupt: 0.02 },
};

/** Service, guests and disks under one seed: what goes wrong, and when, follows from the seed alone. */
export class SimWorld {
  readonly loop: SimLoop;
  readonly statistics: SimStatistics;
  readonly #mode: SimMode;
  readonly #disks = new Map<string, SimDisk>();
  readonly #models = new Map<string, DiskModel>();
  readonly #places: Place[] = [];
  readonly #buses: SimBus[] = [];
  readonly #hostileBus: SimBus;
  #hostile: SimHostileGuest | undefined;
  #service: SimService;
  #lives = 0;
  #drivers: SimQueueDriver[] = [];
  #calm = false;

  constructor(seed: number, mode: SimMode) {
    this.loop = new SimLoop(seed);
    this.#mode = mode;
    const { random } = this.loop;
    for (let i = 0; i < 1 + random.below(3); i++) this.#places.push({ bus: this.#addBus(`bus${i}`), guest: undefined });
    this.#hostileBus = this.#addBus('hostile');
    this.statistics = {
      steps: 0,
      simulatedMs: 0,
      requests: 0,
      ios: 0,
      resets: 0,
      queueResets: 0,
      resumes: 0,
      kills: 0,
      shutdowns: 0,
      guestDeaths: 0,
      hotplugs: 0,
      epochs: 0,
    };
    this.#service = this.#startService();
    for (const place of this.#places) this.#startGuest(place);
    if (random.chance(0.7)) this.#hostile = new SimHostileGuest(this.loop, 'hostile guest', this.#hostileBus);
  }

  #addBus(name: string): SimBus {
    const { random } = this.loop;
    const bus = new SimBus(this.loop, name, random.pick([52, 64, 264]));
    this.#buses.push(bus);
    for (let i = random.below(3); i >= 0; i--) this.#want(bus, `${name}-blk${i}`, this.#addDisk(`${name}-disk${i}`));
    if (random.chance(0.6)) this.#want(bus, `${name}-rng`, undefined);
    return bus;
  }

  #want(bus: SimBus, attachment: string, path: string | undefined): void {
    const { random } = this.loop;
    const backend =
      path === undefined
        ? ({ type: 'rng', source: '/dev/urandom' } as const)
        : ({ type: 'blk', path, readOnly: false, serial: attachment } as const);
    const deviceNumber = 20 + bus.wanted.size;
    const spec = { bus: bus.name, attachment, backend, ...(random.chance(0.3) ? { deviceNumber } : {}) };
    bus.wanted.set(attachment, spec);
  }

  #addDisk(name: string): string {
    const { random } = this.loop;
    const sectors = random.pick([1, 7, 32, 100]);
    const disk = new SimDisk(this.loop, name, sectors * sectorBytes + random.pick([0, 0, 1, 511]), false);
    for (let i = 0; i < sectors; i++) stamp(disk.bytes.subarray(i * sectorBytes, (i + 1) * sectorBytes), 0, i);
    disk.durable.set(disk.bytes);
    disk.preempt = () => {
      const place = this.#places.find((candidate) => name.startsWith(candidate.bus.name));
      if (place?.guest?.process.alive && random.chance(0.1)) place.guest.preempt();
    };
    this.#disks.set(name, disk);
    this.#models.set(name, new DiskModel(sectors));
    return name;
  }

  #startService(): SimService {
    this.#lives += 1;
    const service = new SimService(this.loop, `service ${this.#lives}`, this.#buses, this.#disks);
    void service.start();
    return service;
  }

  #startGuest(place: Place): void {
    this.#lives += 1;
    place.guest = new SimGuest(this.loop, `guest ${this.#lives} of ${place.bus.name}`, {
      bus: place.bus,
      noise: this.#calm ? noises.clean : noises[this.#mode],
      identify: (deviceNumber) => place.bus.numbers.get(deviceNumber),
      probe: (guest, deviceNumber) => this.#probe(place.bus, guest, deviceNumber),
    });
  }

  #probe(bus: SimBus, guest: SimGuest, deviceNumber: number): SimQueueDriver {
    const attachment = bus.numbers.get(deviceNumber);
    const backend = attachment === undefined ? undefined : this.#specs(bus, attachment)?.backend;
    const driver =
      backend?.type === 'blk'
        ? new SimBlkDriver(guest, deviceNumber, this.#disks.get(backend.path)!, this.#models.get(backend.path)!)
        : new SimRngDriver(guest, deviceNumber);
    driver.quiet = this.#calm;
    this.#drivers.push(driver);
    return driver;
  }

  readonly #known = new Map<string, LaneAttachSpec>();
  #specs(bus: SimBus, attachment: string): LaneAttachSpec | undefined {
    const spec = bus.wanted.get(attachment) ?? this.#known.get(attachment);
    if (spec !== undefined) this.#known.set(attachment, spec);
    return spec;
  }

  /** Lets the world run, then makes peace and looks at what is left. @returns what went wrong, or undefined */
  async run(steps: number): Promise<string | undefined> {
    while (this.loop.steps < steps && this.#goesOn()) {
      if (this.loop.random.chance(0.01)) this.#disturb();
      this.#revive();
      if (this.loop.random.chance(0.02)) void this.#inspect();
      await this.loop.step();
    }
    await this.#makePeace();
    this.#count();
    return this.loop.violation;
  }

  #goesOn(): boolean {
    return this.loop.violation === undefined;
  }

  /** Who is connected, as the service tells, is connected. */
  async #inspect(): Promise<void> {
    for (const bus of (await this.#service.inspect())?.buses ?? []) {
      const agrees = (bus.state === 'connected') === (bus.peer !== null);
      this.loop.check(agrees, `bus ${bus.bus} is ${bus.state} and has ${bus.peer === null ? 'no' : 'a'} guest`);
      this.loop.check(bus.peer !== null || bus.regions === 0, `bus ${bus.bus} has regions of a guest that is gone`);
    }
  }

  #revive(): void {
    if (!this.#service.process.alive) this.#service = this.#startService();
    for (const place of this.#places) if (!place.guest?.process.alive) this.#startGuest(place);
  }

  #disturb(): void {
    const { random } = this.loop;
    const place = random.pick(this.#places);
    const disk = random.pick([...this.#disks.values()]);
    switch (random.below(10)) {
      case 0:
        this.#kill(random.chance(0.7) ? random.below(60) : 0);
        return;
      case 1:
        this.#shutdown();
        return;
      case 2:
        this.#endGuest(place);
        return;
      case 3:
        void this.#replug(place.bus);
        return;
      case 4:
        disk.latencyMs = random.pick([0, 2, 20, 800, 8000]);
        return;
      case 5:
        disk.errorRate = random.pick([0, 0.05, 0.3]);
        return;
      case 6:
        this.#service.entropyErrorRate = random.pick([0, 0.2]);
        return;
      case 7:
        if (place.guest !== undefined) place.guest.deafUntilMs = this.loop.nowMs + random.below(300);
        return;
      default:
        for (const each of this.#disks.values()) each.latencyMs = 2;
    }
  }

  #kill(touches: number): void {
    this.loop.log(`kill of the service in ${touches} uses of a port`);
    this.statistics.kills += 1;
    if (touches === 0) this.#service.process.die();
    else this.#service.process.dieAtTouch(touches);
  }

  #shutdown(): void {
    if (!this.#service.isUp || this.#service.calls > 0) return;
    this.loop.log('shutdown of the service');
    this.statistics.shutdowns += 1;
    void this.#service.shutdown();
  }

  #endGuest(place: Place): void {
    this.loop.log(`end of ${place.guest?.process.name}`);
    this.statistics.guestDeaths += 1;
    this.#bury(place);
  }

  #bury(place: Place): void {
    const { guest } = place;
    if (guest === undefined) return;
    this.statistics.requests += guest.answered;
    guest.leave();
  }

  async #replug(bus: SimBus): Promise<void> {
    const service = this.#service;
    if (!service.isUp || service.calls > 0) return;
    this.statistics.hotplugs += 1;
    const spec = this.loop.random.pick([...bus.wanted.values()]);
    this.#known.set(spec.attachment, spec);
    this.loop.log(`replug of ${spec.attachment}`);
    const detached = service.detach(bus, spec.attachment);
    // The desired state outlives the service.
    bus.wanted.set(spec.attachment, spec);
    await detached;
    if (service.process.alive && service.isUp) await service.attach(bus, spec);
  }

  /** Runs until the condition holds; a world that does not get there within the time is stuck. */
  async #until(what: string, done: () => boolean): Promise<void> {
    const begunMs = this.loop.nowMs;
    while (!done() && this.#goesOn()) {
      this.#revive();
      const more = await this.loop.step();
      if (more && this.loop.nowMs - begunMs < 200_000) continue;
      this.loop.fail(`${what} does not happen: ${this.#places.map((place) => this.#describe(place)).join('; ')}`);
    }
  }

  async #makePeace(): Promise<void> {
    this.#calm = true;
    this.loop.log('peace');
    this.#hostile?.process.die();
    for (const disk of this.#disks.values()) {
      disk.latencyMs = 1;
      disk.errorRate = 0;
    }
    this.#service.entropyErrorRate = 0;
    this.#service.process.dieAtTouch(Number.POSITIVE_INFINITY);
    for (const driver of this.#drivers) driver.quiet = true;
    if (this.#mode !== 'clean') for (const place of this.#places) this.#bury(place);
    await this.#until('the service being up', () => this.#service.isUp && this.#service.calls === 0);
    await this.#until('peace', () => this.#places.every((place) => this.#isPeaceful(place)));
    for (const driver of this.#drivers) if (driver instanceof SimBlkDriver && !driver.isGone) driver.readAll();
    await this.#leave();
  }

  #describe({ bus, guest }: Place): string {
    const drivers = [...(guest?.drivers.values() ?? [])].map((driver) => (driver as SimQueueDriver).describe());
    const state = guest?.isConnected ? 'connected' : 'not connected';
    return `${guest?.process.name} ${state}, ${guest?.pendingRequests} requests wait, ${bus.wanted.size} devices wanted, ${drivers}`;
  }

  #isPeaceful({ bus, guest }: Place): boolean {
    if (guest?.process.alive !== true || !guest.isConnected || guest.pendingRequests > 0) return false;
    const drivers = [...guest.drivers.values()] as SimQueueDriver[];
    return drivers.length === bus.wanted.size && drivers.every((driver) => driver.isIdle);
  }

  /** All guests leave: nothing of them may stay behind. */
  async #leave(): Promise<void> {
    for (const driver of this.#drivers)
      if (driver.wasTrespassed) this.loop.fail(`${driver.name}: memory was written after it was taken back`);
    for (const place of this.#places) this.#bury(place);
    const service = this.#service;
    const { held } = service.process;
    const kinds = ['mapping', 'kick', 'call', 'connection'];
    const leftovers = () => kinds.map((kind) => held.get(kind) ?? 0).reduce((sum, count) => sum + count, 0);
    const begunMs = this.loop.nowMs;
    while (this.loop.nowMs - begunMs < 40_000 && (await this.loop.step()));
    this.loop.check(leftovers() === 0, `left of the guests: ${JSON.stringify([...held])}`);
    this.loop.check(service.process.timers === 0, `${service.process.timers} timers left after all guests are gone`);
    const inspected = service.inspect();
    await this.loop.settle();
    for (const bus of (await inspected)?.buses ?? []) {
      const clean = bus.regions + bus.regionBytes + bus.regionsDraining === 0 && bus.state === 'listening';
      this.loop.check(clean, `bus ${bus.bus} is not clean: ${bus.state}, ${bus.regions} regions`);
      const busy = bus.devices.some((device) => device.queues.length > 0 || device.status !== 0);
      this.loop.check(!busy, `bus ${bus.bus} has devices that are not in reset`);
    }
    void service.shutdown();
    while (service.process.alive && this.#goesOn() && (await this.loop.step()));
  }

  #count(): void {
    const { statistics } = this;
    statistics.steps = this.loop.steps;
    statistics.simulatedMs = Math.round(this.loop.nowMs);
    for (const driver of this.#drivers) {
      statistics.ios += driver.completed;
      statistics.resets += driver.resets;
      statistics.queueResets += driver.queueResets;
      statistics.resumes += driver.resumes;
    }
    statistics.epochs = this.#buses.reduce((sum, bus) => sum + Number(bus.lastEpoch), 0);
  }
}
