import { RingPort } from '../../src/device/ring-port.ts';
import { limits } from '../../src/kit/limits.ts';
import type {
  Admission,
  BusPort,
  BusTransport,
  BusTransportHandler,
  GuestConnection,
  GuestResources,
  ResumeClaim,
} from '../../src/ports/bus.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import type { SimLoop, SimProcess } from './sim-loop.ts';
import { type SimReference, SimResources } from './sim-resources.ts';

/** The guest's end of a connection. Calls come as events of the guest's process. */
export interface SimCaller {
  readonly process: SimProcess;
  readonly references: Map<number, SimReference>;
  readonly maxMessageSize: number;
  welcomed(admission: Admission): SimRings;
  ready(connection: SimConnection): void;
  refused(): void;
  doorbell(): void;
  closed(): void;
  /** Acts while the service is in the middle of something, as a program on another processor would. */
  preempt(): void;
}

export interface SimRings {
  readonly toService: Uint8Array;
  readonly toGuest: Uint8Array;
  readonly slotBytes: number;
  readonly sleepWords: boolean;
}

/** How often frames are lost or spoiled on the way, each way. */
export interface SimNoise {
  readonly drop: number;
  readonly corrupt: number;
}

const identity = { pid: 1, uid: 0, gid: 0 };

/** The place where a bus listens: it stays when the service is gone. */
export class SimSocket {
  readonly loop: SimLoop;
  transport: SimTransport | undefined;

  constructor(loop: SimLoop) {
    this.loop = loop;
  }

  /** A little later than now, seldom much later. */
  delayMs(): number {
    const { random } = this.loop;
    return random.chance(0.02) ? random.below(200) : random.below(1000) / 1000;
  }

  connect(caller: SimCaller, claim: ResumeClaim, noise: SimNoise): void {
    const { transport } = this;
    if (transport?.listening !== true) this.loop.at(caller.process, this.delayMs(), () => caller.refused());
    else transport.arrive(caller, claim, noise);
  }
}

export class SimTransport implements BusTransport {
  readonly process: SimProcess;
  readonly socket: SimSocket;
  readonly #loop: SimLoop;
  #handler: BusTransportHandler | undefined;
  #current: SimConnection | undefined;
  readonly #arriving = new Set<SimCaller>();
  #closed = false;

  constructor(loop: SimLoop, process: SimProcess, socket: SimSocket) {
    this.#loop = loop;
    this.process = process;
    this.socket = socket;
    process.onDeath(() => {
      this.#current?.vanish();
      for (const caller of this.#arriving) this.#tellRefused(caller);
    });
  }

  get listening(): boolean {
    return this.#handler !== undefined && !this.#closed && this.process.alive;
  }

  get state(): 'listening' | 'handshake' | 'connected' {
    if (this.#current === undefined) return 'listening';
    return this.#current.isReady ? 'connected' : 'handshake';
  }

  start(handler: BusTransportHandler): void {
    this.process.touch();
    this.#handler = handler;
    this.socket.transport = this;
  }

  /** A guest connects its socket. */
  arrive(caller: SimCaller, claim: ResumeClaim, noise: SimNoise): void {
    this.#arriving.add(caller);
    this.#loop.at(this.process, this.socket.delayMs(), () => {
      this.#arriving.delete(caller);
      this.#accept(caller, claim, noise);
    });
  }

  #tellRefused(caller: SimCaller): void {
    this.#loop.at(caller.process, this.socket.delayMs(), () => caller.refused());
  }

  #accept(caller: SimCaller, claim: ResumeClaim, noise: SimNoise): void {
    const handler = this.#handler!;
    if (this.#current !== undefined || this.#closed) {
      this.#tellRefused(caller);
      if (!this.#closed) handler.refused(identity, 'the bus has a guest already');
      return;
    }
    const connection = new SimConnection(this.#loop, this, caller, noise, () => {
      this.#current = undefined;
    });
    this.#current = connection;
    connection.begin(handler.admit(claim));
  }

  refuse(reason: string): void {
    this.#handler!.refused(identity, reason);
  }

  connected(connection: SimConnection): void {
    this.#handler!.connected(connection, identity);
  }

  disconnected(reason: string): void {
    this.#handler!.disconnected(reason);
  }

  close(): void {
    this.#closed = true;
    this.#current?.close();
  }
}

/** One guest on a bus, from its first packet to its end. */
export class SimConnection implements GuestConnection {
  readonly resources: GuestResources;
  readonly maxMessageSize: number;
  readonly outOfBandKicks = true;
  readonly #loop: SimLoop;
  readonly #transport: SimTransport;
  readonly #caller: SimCaller;
  readonly #noise: SimNoise;
  readonly #released: () => void;
  readonly #handle: { close(): void };
  #phase: 'handshake' | 'ready' | 'closed' = 'handshake';
  #admission: Admission | undefined;
  #port: BusPort | undefined;
  #listener: (() => void) | undefined;
  #doorbellPlanned = false;

  constructor(loop: SimLoop, transport: SimTransport, caller: SimCaller, noise: SimNoise, released: () => void) {
    this.#loop = loop;
    this.#transport = transport;
    this.#caller = caller;
    this.#noise = noise;
    this.#released = released;
    this.maxMessageSize = caller.maxMessageSize;
    this.resources = new SimResources(loop, transport.process, caller.process, caller.references);
    this.#handle = transport.process.hold('connection');
    caller.process.onDeath(() => this.leave('the guest died'));
  }

  get isReady(): boolean {
    return this.#phase === 'ready';
  }

  get port(): BusPort {
    return this.#port!;
  }

  get admission(): Admission {
    return this.#admission!;
  }

  begin(admission: Admission): void {
    this.#admission = admission;
    const { process } = this.#transport;
    const timer = process.clock.after(limits.handshakeTimeoutMs, () => this.#end('the handshake took too long'));
    this.#toGuest(() => {
      const rings = this.#caller.welcomed(admission);
      this.#loop.at(process, this.#delayMs(), () => {
        timer.cancel();
        if (this.#phase === 'handshake') this.#start(rings);
      });
    });
  }

  #start(rings: SimRings): void {
    this.#phase = 'ready';
    const { slotBytes, sleepWords } = rings;
    const port = new RingPort(
      slotBytes,
      new RingConsumer(rings.toService, slotBytes, sleepWords),
      new RingProducer(rings.toGuest, slotBytes, sleepWords),
      () => this.#toGuest(() => this.#caller.doorbell()),
    );
    this.#port = new SimPort(this.#loop, this.#transport.process, port, this.#caller, this.#noise);
    this.#toGuest(() => this.#caller.ready(this));
    this.#transport.connected(this);
  }

  #delayMs(): number {
    return this.#transport.socket.delayMs();
  }

  #toGuest(run: () => void): void {
    this.#loop.at(this.#caller.process, this.#delayMs(), () => {
      if (this.#phase !== 'closed') run();
    });
  }

  onDoorbell(listener: () => void): void {
    this.#listener = listener;
  }

  /** The guest rings. Several rings may arrive as one, none is lost. */
  ring(): void {
    if (this.#doorbellPlanned) return;
    this.#doorbellPlanned = true;
    this.#loop.at(this.#transport.process, this.#delayMs(), () => {
      this.#doorbellPlanned = false;
      if (this.#phase === 'ready') this.#listener?.();
    });
  }

  /** The guest closes its socket, or the kernel does it. */
  leave(reason: string): void {
    this.#loop.at(this.#transport.process, this.#delayMs(), () => this.#end(reason));
  }

  #end(reason: string): void {
    if (this.#phase === 'closed') return;
    const wasReady = this.isReady;
    this.close();
    if (wasReady) this.#transport.disconnected(reason);
    else this.#transport.refuse(reason);
  }

  close(): void {
    if (this.#phase === 'closed') return;
    this.#phase = 'closed';
    this.#handle.close();
    this.#released();
    this.#loop.at(this.#caller.process, this.#delayMs(), () => this.#caller.closed());
  }

  /** The service is dead. */
  vanish(): void {
    this.#phase = 'closed';
    this.#loop.at(this.#caller.process, this.#delayMs(), () => this.#caller.closed());
  }
}

/** The rings of a connection, with what may happen between two instructions of the service. */
class SimPort implements BusPort {
  readonly slotBytes: number;
  readonly #loop: SimLoop;
  readonly #process: SimProcess;
  readonly #port: RingPort;
  readonly #caller: SimCaller;
  readonly #noise: SimNoise;

  constructor(loop: SimLoop, process: SimProcess, port: RingPort, caller: SimCaller, noise: SimNoise) {
    this.slotBytes = port.slotBytes;
    this.#loop = loop;
    this.#process = process;
    this.#port = port;
    this.#caller = caller;
    this.#noise = noise;
  }

  #pause(): void {
    this.#process.touch();
    if (this.#caller.process.alive && this.#loop.random.chance(0.2)) this.#caller.preempt();
  }

  receive(target: Uint8Array): 'message' | 'empty' | 'broken' {
    this.#pause();
    for (;;) {
      const outcome = this.#port.receive(target);
      if (outcome !== 'message' || !this.#loop.random.chance(this.#noise.drop)) {
        if (outcome === 'message') this.#spoil(target);
        return outcome;
      }
    }
  }

  send(frame: Uint8Array): 'sent' | 'full' | 'broken' {
    this.#pause();
    if (this.#loop.random.chance(this.#noise.drop)) return 'sent';
    const copy = frame.slice();
    this.#spoil(copy);
    return this.#port.send(copy);
  }

  #spoil(frame: Uint8Array): void {
    if (this.#loop.random.chance(this.#noise.corrupt)) {
      frame[this.#loop.random.below(frame.length)]! ^= 1 << this.#loop.random.below(8);
    }
  }

  flush(): boolean {
    this.#pause();
    const rang = this.#port.flush();
    this.#pause();
    return rang;
  }

  sleep(): boolean {
    this.#pause();
    return this.#port.sleep();
  }
}
