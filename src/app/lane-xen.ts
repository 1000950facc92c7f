import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { XenTransport } from '../bridge/bus/xen/transport.ts';
import type { XenBusSpec } from '../bridge/lane/protocol.ts';
import type { BounceMemory } from '../bridge/shadow/bounce-memory.ts';
import { grantedBounce } from '../bridge/shadow/granted-bounce.ts';
import { assert } from '../kit/assert.ts';
import type { Clock } from '../kit/clock.ts';
import { toErrorData, VmsgError } from '../kit/errors.ts';
import { type Closable, Scope } from '../kit/scope.ts';
import {
  asDomid,
  type Domid,
  type EventChannels,
  type GrantMapper,
  type GrantSharer,
  type Hypervisor,
  type Xenstore,
} from '../ports/hypervisor.ts';
import { type XenControl, XsmDetector, type XsmVerdict } from '../xen/xsm.ts';

/** What a lane uses of Xen. Where Xen cannot be asked about itself, it is not known what it forbids. */
export interface LaneHypervisor extends Hypervisor {
  /** @throws HypervisorError */
  openControl?(): XenControl;
}

/** What all Xen buses of a lane share. */
interface XenParts {
  readonly grants: GrantMapper;
  readonly channels: EventChannels;
  readonly xenstore: Xenstore;
  readonly serviceDomid: Domid;
}

/** The side of a lane towards Xen; opened with its first Xen bus. */
export class LaneXen implements Closable {
  readonly #hypervisor: LaneHypervisor;
  readonly #clock: Clock;
  readonly #scope = new Scope();
  #parts: XenParts | undefined;
  #sharer: GrantSharer | undefined;
  #xsm: XsmDetector | undefined;

  constructor(hypervisor: LaneHypervisor, clock: Clock) {
    this.#hypervisor = hypervisor;
    this.#clock = clock;
  }

  /** @throws VmsgError `unavailable` naming what of Xen is missing */
  transport(spec: XenBusSpec, wire: { readonly revision: number; readonly dialect: number }): XenTransport {
    const domid = asDomid(spec.domid);
    if (domid === undefined) throw new VmsgError('invalid-request', `${spec.domid} is no number of a Xen domain`);
    return new XenTransport({ ...spec, ...this.#shared(), ...wire, domid, clock: this.#clock });
  }

  /** @throws VmsgError `unavailable` naming what of Xen is missing */
  #shared(): XenParts {
    this.#parts ??= this.#open();
    return this.#parts;
  }

  /** Memory of ours that a domain can map. @throws VmsgError hypervisor-call */
  bounce(domid: number, bytes: number): BounceMemory {
    const server = asDomid(domid);
    assert(server !== undefined, 'a guest has the number of a domain');
    this.#sharer ??= this.#scope.own(this.#hypervisor.openGrantSharer());
    return grantedBounce(this.#sharer, server, this.#shared().serviceDomid, bytes);
  }

  /** Which security module Xen runs; what cannot be found out is 'unknown'. */
  xsm(): XsmVerdict {
    try {
      this.#xsm ??= this.#openXsm();
      return this.#xsm?.verdict() ?? { mode: 'unknown', reason: 'Xen cannot be asked here' };
    } catch (error) {
      return { mode: 'unknown', reason: toErrorData(error).message };
    }
  }

  #openXsm(): XsmDetector | undefined {
    const control = this.#hypervisor.openControl?.();
    return control === undefined ? undefined : new XsmDetector(this.#scope.own(control));
  }

  /** After all buses. */
  close(): void {
    this.#parts = undefined;
    this.#sharer = undefined;
    this.#xsm = undefined;
    this.#scope.close();
  }

  #open(): XenParts {
    const opened = new Scope();
    try {
      const xenstore = opened.own(this.#hypervisor.openXenstore());
      const channels = opened.own(this.#hypervisor.openEventChannels());
      const grants = opened.own(this.#hypervisor.openGrantMapper());
      const serviceDomid = ownDomid(xenstore);
      this.#scope.own(opened);
      return { grants, channels, xenstore, serviceDomid };
    } catch (error) {
      opened.close();
      throw new VmsgError('unavailable', toErrorData(error).message, { cause: error });
    }
  }
}

/** @throws VmsgError `unavailable` */
export function ownDomid(xenstore: Xenstore): Domid {
  const text = xenstore.read('domid') ?? '';
  const domid = /^\d{1,5}$/.test(text) ? asDomid(Number(text)) : undefined;
  if (domid === undefined) throw new VmsgError('unavailable', 'xenstored does not say which domain this is');
  return domid;
}

/** Makes the directory of a bus and removes what belongs to an earlier life of its domain. @returns its directory */
export function recoveryDirOf({ recoveryDir, incarnation }: XenBusSpec): string {
  mkdirSync(recoveryDir, { recursive: true, mode: 0o700 });
  for (const name of readdirSync(recoveryDir)) {
    if (name !== incarnation) rmSync(path.join(recoveryDir, name), { recursive: true, force: true });
  }
  return path.join(recoveryDir, incarnation);
}
