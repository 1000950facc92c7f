import { limits } from '../../../kit/limits.ts';
import type { ResumeClaim } from '../../../ports/bus.ts';
import { asEventPort, asGrantRef, type EventPort } from '../../../ports/hypervisor.ts';
import { type frontendNodes, xenBusVersion } from '../../../virtio-msg/xen-bus.ts';

type FrontendNode = keyof typeof frontendNodes;

/** What the service has offered and the guest has to keep to. */
export interface FrontendTerms {
  readonly dialect: number;
  readonly maxMessageSizeBytes: number;
}

/** A guest's answer to an offer, as far as it can be checked without touching what it names. */
export interface FrontendAnswer {
  readonly maxMessageSize: number;
  /** Grant references of the pages, in order. */
  readonly toService: Uint32Array;
  readonly toGuest: Uint32Array;
  readonly port: EventPort;
  readonly sleepWords: boolean;
  readonly queueChannels: boolean;
  readonly persistent: boolean;
  readonly claim: ResumeClaim;
}

const decimal = /^(?:0|[1-9][0-9]{0,19})$/;
const u64Max = (1n << 64n) - 1n;
const u32Max = 0xffff_ffff;
const listMaxChars = limits.xenRingMaxPages * 11;
const shownMaxChars = 40;

/** @returns undefined for what is not a plain decimal number of at most 64 bits */
export function parseU64(text: string | undefined): bigint | undefined {
  if (text === undefined || !decimal.test(text)) return undefined;
  const value = BigInt(text);
  return value <= u64Max ? value : undefined;
}

/** @returns undefined for what is not a plain decimal number of at most 32 bits */
export function parseU32(text: string | undefined): number | undefined {
  const value = parseU64(text);
  return value === undefined || value > BigInt(u32Max) ? undefined : Number(value);
}

const escaped = (char: string): string => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
/** Text of a guest within a sentence of ours: short, and nothing that a terminal would obey. */
const shown = (text: string): string =>
  JSON.stringify(text.slice(0, shownMaxChars)).replaceAll(/[^\x20-\x7e]/g, escaped);

/** Takes values out of nodes, each read once; remembers what was wrong first. */
class NodeReader {
  readonly #read: (node: FrontendNode) => string | undefined;
  fault: string | undefined;

  constructor(read: (node: FrontendNode) => string | undefined) {
    this.#read = read;
  }

  optional(node: FrontendNode): string | undefined {
    return this.#read(node);
  }

  number(node: FrontendNode, least: number, most: number): number {
    const text = this.#read(node);
    const value = parseU32(text);
    if (text === undefined) this.wrong(`${node} is missing`);
    else if (value === undefined || value < least || value > most) {
      this.wrong(`${node} is ${shown(text)}, not a number from ${least} to ${most}`);
    }
    return value ?? 0;
  }

  flag(node: FrontendNode): boolean {
    const text = this.#read(node);
    if (text !== undefined && text !== '0' && text !== '1') this.wrong(`${node} is ${shown(text)}, not 1 or 0`);
    return text === '1';
  }

  references(node: FrontendNode): Uint32Array {
    const text = this.#read(node);
    const most = limits.xenRingMaxPages;
    const parts = text === undefined || text.length > listMaxChars ? [] : text.split(' ');
    if (text === undefined) this.wrong(`${node} is missing`);
    else if (parts.length < 1 || parts.length > most) this.wrong(`${node} is not a list of 1 to ${most} references`);
    const values = parts.map((part) => asGrantRef(parseU32(part) ?? 0) ?? 0);
    const bad = values.indexOf(0 as never);
    if (bad >= 0) this.wrong(`${node} has ${shown(parts[bad]!)} in it, which is no grant reference`);
    return Uint32Array.from(values);
  }

  claim(): ResumeClaim {
    const epochText = this.#read('resume-epoch');
    const tokenText = this.#read('resume-token');
    if (epochText === undefined) return { epoch: 0n, token: new Uint8Array(16) };
    const epoch = parseU64(epochText);
    if (epoch === undefined) this.wrong(`resume-epoch is ${shown(epochText)}, not a number`);
    const isToken = tokenText !== undefined && /^[0-9a-f]{32}$/i.test(tokenText);
    if (!isToken) this.wrong('resume-token is not 32 hexadecimal digits');
    return { epoch: epoch ?? 0n, token: Uint8Array.from(Buffer.from(isToken ? tokenText : '', 'hex')) };
  }

  wrong(sentence: string): void {
    this.fault ??= sentence;
  }
}

/**
 * Checks all that a guest has written for an offer.
 * @param read a node of the guest's directory, undefined when it does not exist; called once for each node
 * @returns why the answer is refused, as a sentence
 */
export function readFrontend(
  read: (node: FrontendNode) => string | undefined,
  terms: FrontendTerms,
): FrontendAnswer | string {
  const nodes = new NodeReader(read);
  nodes.number('version', xenBusVersion, xenBusVersion);
  nodes.number('dialect', terms.dialect, terms.dialect);
  const maxMessageSize = nodes.number('max-message-size', limits.messageSizeMinBytes, u32Max);
  const toService = nodes.references('ring-to-service-refs');
  const toGuest = nodes.references('ring-to-guest-refs');
  if (new Set([...toService, ...toGuest]).size !== toService.length + toGuest.length) {
    nodes.wrong('a grant reference is there twice in the rings');
  }
  const port = asEventPort(nodes.number('event-channel', 1, u32Max));
  const sleepWords = nodes.flag('feature-sleep-words');
  const queueChannels = nodes.flag('feature-queue-evtchn');
  const persistent = nodes.flag('feature-persistent');
  const claim = nodes.claim();
  if (nodes.fault !== undefined || port === undefined) return nodes.fault ?? 'event-channel is no port';
  return {
    maxMessageSize: Math.min(maxMessageSize, terms.maxMessageSizeBytes),
    toService,
    toGuest,
    port,
    sleepWords,
    queueChannels,
    persistent,
    claim,
  };
}
