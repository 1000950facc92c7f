import type { Scope } from '../../src/kit/scope.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { ringBytesFor, slotBytes } from '../../src/virtio-msg/ring.ts';

/** As many as a guest asks for by default. */
const ringSlots = 255;
const pageBytes = 4096;

/** The two rings between two processes, and a doorbell socket for each. */
export interface BenchLink {
  readonly memory: number;
  readonly bells: readonly [number, number];
  /** Of one ring; the second one follows it. */
  readonly ringBytes: number;
  readonly slot: number;
}

/** What both ends agree on besides descriptors, as program arguments. */
export const linkArguments = (link: BenchLink, messageBytes: number): string[] =>
  [link.ringBytes, link.slot, messageBytes].map(String);

/**
 * Makes a link; the programs that use it inherit its descriptors. Ours close with the scope, which has to end before
 * the programs run, so that each sees the end of the other.
 */
export function makeLink(messageBytes: number, scope: Scope): BenchLink {
  const slot = slotBytes(messageBytes);
  const ringBytes = Math.ceil(ringBytesFor(ringSlots, slot) / pageBytes) * pageBytes;
  const memory = scope.own(createMemfd('vmsg-bench', 2 * ringBytes));
  const [near, far] = socketPair('seqpacket');
  scope.own(near);
  scope.own(far);
  return { memory: memory.number, bells: [near.number, far.number], ringBytes, slot };
}
