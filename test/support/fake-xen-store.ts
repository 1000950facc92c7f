import { limits } from '../../src/kit/limits.ts';
import type { Scheduler } from '../../src/kit/scheduler.ts';
import type { Closable } from '../../src/kit/scope.ts';
import type { Domid, Xenstore, XenstoreAccess, XenstorePermission } from '../../src/ports/hypervisor.ts';
import { HypervisorError } from '../../src/xen/errors.ts';
import { allows, type FakeChange, FakeTree, parentOf } from './fake-xen-tree.ts';

const specialPaths = ['@introduceDomain', '@releaseDomain'];
const guestWatches = 128;

/** What xenstored needs of the machine. */
export interface StoreMachine {
  readonly scheduler: Scheduler;
  isPaused(domid: number): boolean;
  isIntroduced(domid: number): boolean;
  exists(domid: number): boolean;
}

interface FakeWatch {
  readonly domid: number;
  readonly path: string;
  /** Part that is left out of the paths that this watch is told. */
  readonly prefix: string;
  readonly onChange: (path: string) => void;
  /** Changes that were not told yet. */
  readonly queue: string[];
  scheduled: boolean;
}

/** xenstored: one for all domains. */
export class FakeStored {
  readonly tree = new FakeTree();
  readonly #machine: StoreMachine;
  readonly #watches = new Set<FakeWatch>();

  constructor(machine: StoreMachine) {
    this.#machine = machine;
  }

  isIntroduced(domid: number): boolean {
    return this.#machine.isIntroduced(domid);
  }

  exists(domid: number): boolean {
    return this.#machine.exists(domid);
  }

  publish(changes: readonly FakeChange[]): void {
    for (const change of changes) {
      for (const watch of this.#watches) {
        if (matches(watch.path, change) && allows(change.permissions, watch.domid, 'read'))
          this.tell(watch, change.path);
      }
    }
  }

  /** Tells everybody who watches `@introduceDomain` or `@releaseDomain`. */
  publishSpecial(path: string): void {
    for (const watch of this.#watches) if (watch.path === path) this.tell(watch, path);
  }

  addWatch(watch: FakeWatch): void {
    const own = [...this.#watches].filter(({ domid }) => domid === watch.domid).length;
    const isRefused = specialPaths.includes(watch.path) && watch.domid !== 0;
    if (isRefused) throw new HypervisorError('xs_watch', 'EACCES', { what: watch.path });
    if (watch.domid !== 0 && own >= guestWatches) throw new HypervisorError('xs_watch', 'E2BIG', { what: watch.path });
    this.#watches.add(watch);
    this.tell(watch, watch.path);
  }

  removeWatch(watch: FakeWatch): void {
    this.#watches.delete(watch);
  }

  tell(watch: FakeWatch, path: string): void {
    watch.queue.push(path.startsWith(watch.prefix) ? path.slice(watch.prefix.length) : path);
    this.deliver(watch);
  }

  /** After a pause. */
  redeliver(domid: number): void {
    for (const watch of this.#watches) if (watch.domid === domid) this.deliver(watch);
  }

  deliver(watch: FakeWatch): void {
    if (watch.scheduled || watch.queue.length === 0) return;
    watch.scheduled = true;
    this.#machine.scheduler.later(() => {
      watch.scheduled = false;
      if (this.#machine.isPaused(watch.domid) || !this.#watches.has(watch)) return;
      const path = watch.queue.shift()!;
      this.deliver(watch);
      watch.onChange(path);
    });
  }
}

const matches = (watched: string, { path, exact }: FakeChange): boolean =>
  path === watched || (!exact && (watched === '/' || path.startsWith(`${watched}/`)));

/** Hears of a node before a call looks at it. */
type Touch = (path: string) => void;
/** Hears of changes that were made, and how to make them on another tree. */
type Changed = (changes: readonly FakeChange[], redo: (tree: FakeTree) => FakeChange[]) => void;

/** The calls of one domain, on the real tree or on that of a transaction. */
class FakeAccess implements XenstoreAccess {
  readonly #stored: FakeStored;
  readonly #domid: number;
  readonly #tree: FakeTree;
  readonly #touch: Touch;
  readonly #changed: Changed;

  constructor(stored: FakeStored, domid: number, tree: FakeTree, touch: Touch, changed: Changed) {
    this.#stored = stored;
    this.#domid = domid;
    this.#tree = tree;
    this.#touch = touch;
    this.#changed = changed;
  }

  read(path: string): string | undefined {
    return this.#look(path, (full) => this.#tree.read(this.#domid, full));
  }

  directory(path: string): string[] | undefined {
    return this.#look(path, (full) => this.#tree.directory(this.#domid, full));
  }

  permissions(path: string): XenstorePermission[] | undefined {
    return this.#look(path, (full) => this.#tree.permissions(this.#domid, full));
  }

  write(path: string, value: string): void {
    this.#change('xs_write', path, (tree, full) => tree.write(this.#domid, full, value));
  }

  remove(path: string): void {
    this.#change('xs_rm', path, (tree, full) => tree.remove(this.#domid, full));
  }

  setPermissions(path: string, permissions: readonly XenstorePermission[]): void {
    if (!this.#stored.exists(permissions[0]?.domid ?? -1)) {
      throw new HypervisorError('xs_set_permissions', 'ENOENT', { what: path });
    }
    this.#change('xs_set_permissions', path, (tree, full) => tree.setPermissions(this.#domid, full, permissions));
  }

  #look<T>(path: string, run: (full: string) => T): T | undefined {
    const full = absolute(this.#domid, path);
    this.#touch(full);
    try {
      return run(full);
    } catch (error) {
      if (error instanceof HypervisorError && ['ENOENT', 'EACCES'].includes(error.errno)) return undefined;
      throw error;
    }
  }

  #change(call: string, path: string, run: (tree: FakeTree, full: string) => FakeChange[]): void {
    const full = absolute(this.#domid, path, call);
    for (let above = full; above !== '/'; above = parentOf(above)) {
      this.#touch(above);
      if (this.#tree.generationOf(above) >= 0 && above !== full) break;
    }
    this.#changed(run(this.#tree, full), (tree) => run(tree, full));
  }
}

const homeOf = (domid: number): string => `/local/domain/${domid}/`;

function absolute(domid: number, path: string, call = 'xs_read'): string {
  const isAbsolute = path.startsWith('/');
  const isLegal =
    /^[\w\-/@]+$/.test(path) &&
    !path.includes('//') &&
    (path === '/' || !path.endsWith('/')) &&
    path.length < (isAbsolute ? limits.xenstorePathMaxBytes : limits.xenstorePathMaxBytes / 1.5);
  if (!isLegal) throw new HypervisorError(call, 'EINVAL', { what: path.slice(0, 80) });
  return isAbsolute ? path : homeOf(domid) + path;
}

/** A connection to xenstored. */
export class FakeXenstore implements Xenstore {
  readonly #stored: FakeStored;
  readonly #domid: Domid;
  readonly #direct: FakeAccess;
  readonly #watches = new Set<FakeWatch>();
  #closed = false;

  constructor(stored: FakeStored, domid: Domid) {
    this.#stored = stored;
    this.#domid = domid;
    const touch = (): void => {
      if (this.#closed) throw new HypervisorError('xs_read', 'EBADF');
    };
    this.#direct = new FakeAccess(stored, domid, stored.tree, touch, (changes) => stored.publish(changes));
  }

  census(): { watches: number } {
    return { watches: this.#watches.size };
  }

  read = (path: string): string | undefined => this.#direct.read(path);
  write = (path: string, value: string): void => this.#direct.write(path, value);
  directory = (path: string): string[] | undefined => this.#direct.directory(path);
  remove = (path: string): void => this.#direct.remove(path);
  setPermissions = (path: string, permissions: readonly XenstorePermission[]): void =>
    this.#direct.setPermissions(path, permissions);
  permissions = (path: string): XenstorePermission[] | undefined => this.#direct.permissions(path);

  transaction<T>(body: (access: XenstoreAccess) => T): T {
    if (this.#closed) throw new HypervisorError('xs_transaction_start', 'EBADF');
    for (let tries = 0; tries < limits.xenstoreTransactionTries; tries++) {
      const seen = new Map<string, number>();
      const log: ((tree: FakeTree) => FakeChange[])[] = [];
      const before = new FakeTree(this.#stored.tree);
      const copy = new FakeTree(before);
      const touch = (path: string): void => {
        if (!seen.has(path)) seen.set(path, before.generationOf(path));
      };
      const result = body(new FakeAccess(this.#stored, this.#domid, copy, touch, (_, redo) => log.push(redo)));
      const { tree } = this.#stored;
      if ([...seen].some(([path, generation]) => tree.generationOf(path) !== generation)) continue;
      for (const redo of log) this.#stored.publish(redo(tree));
      return result;
    }
    throw new HypervisorError('xs_transaction_end', 'EAGAIN');
  }

  watch(path: string, onChange: (path: string) => void): Closable {
    if (this.#closed) throw new HypervisorError('xs_watch', 'EBADF', { what: path });
    const isRelative = !path.startsWith('/') && !path.startsWith('@');
    const prefix = isRelative ? homeOf(this.#domid) : '';
    const full = specialPaths.includes(path) ? path : absolute(this.#domid, path, 'xs_watch');
    const watch: FakeWatch = { domid: this.#domid, path: full, prefix, onChange, queue: [], scheduled: false };
    this.#stored.addWatch(watch);
    this.#watches.add(watch);
    return {
      close: () => {
        this.#watches.delete(watch);
        this.#stored.removeWatch(watch);
      },
    };
  }

  isIntroduced(domid: Domid): boolean {
    if (this.#closed) throw new HypervisorError('xs_is_domain_introduced', 'EBADF');
    return this.#stored.isIntroduced(domid);
  }

  close(): void {
    this.end();
  }

  end(): void {
    this.#closed = true;
    for (const watch of this.#watches) this.#stored.removeWatch(watch);
    this.#watches.clear();
  }
}
