import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import { errnoName, errnos } from '../libc/errno.ts';
import { lastErrno } from '../libc/native.ts';
import type { Poller, Watch } from '../libc/poll.ts';
import {
  asDomid,
  type Domid,
  type Xenstore,
  type XenstoreAccess,
  type XenstorePermission,
} from '../ports/hypervisor.ts';
import { HypervisorError } from './errors.ts';
import { callFailed, checkedHandle } from './handle.ts';
import { type StoreCalls, takeBytes, takeStrings, takeWords } from './native.ts';

/** Watch events of tokens that were unwatched meanwhile are dropped by the library (xenstore.h). */
const unwatchFilter = 1 << 2;
const noTransaction = 0;
/** Bits of enum xs_perm_type (xenstore_lib.h). */
const accessBits = { none: 0, read: 1, write: 2, both: 3 } as const;
const accessMask = 3;
const accessNames = ['none', 'read', 'write', 'both'] as const;

const pathCharacters = /^[\w\-/@]+$/;

/** Everything else is refused before xenstored sees it, which would answer the same. @throws HypervisorError EINVAL */
function checkPath(call: string, path: string): void {
  const isLegal =
    path.length <= limits.xenstorePathMaxBytes &&
    pathCharacters.test(path) &&
    !path.includes('//') &&
    (path === '/' || !path.endsWith('/'));
  if (!isLegal) throw new HypervisorError(call, 'EINVAL', { what: JSON.stringify(path.slice(0, 80)) });
}

/** A handle of the library, which must not be used once it is closed. */
class Connection implements Closable {
  readonly calls: StoreCalls;
  #handle: number;

  /** @throws HypervisorError */
  constructor(calls: StoreCalls) {
    this.calls = calls;
    this.#handle = checkedHandle(calls.open(unwatchFilter), 'xs_open', 'xenstored');
  }

  get isOpen(): boolean {
    return this.#handle !== 0;
  }

  /** @throws HypervisorError EBADF when it is closed */
  get handle(): number {
    if (this.#handle === 0) throw new HypervisorError('xenstore', 'EBADF');
    return this.#handle;
  }

  close(): void {
    if (this.isOpen) this.calls.close(this.#handle);
    this.#handle = 0;
  }
}

/** Calls with or without a transaction. */
class StoreAccess implements XenstoreAccess {
  readonly #calls: StoreCalls;
  readonly #connection: Connection;
  readonly #transaction: number;
  readonly #decoder = new TextDecoder();
  /** Result of calls that also tell a length. */
  readonly #length = new Uint32Array(1);

  constructor(connection: Connection, transaction: number) {
    this.#calls = connection.calls;
    this.#connection = connection;
    this.#transaction = transaction;
  }

  read(path: string): string | undefined {
    checkPath('xs_read', path);
    const address = this.#calls.read(this.#connection.handle, this.#transaction, path, this.#length);
    if (address === 0) return absent('xs_read', path);
    return this.#decoder.decode(takeBytes(address, this.#length[0]!));
  }

  write(path: string, value: string): void {
    checkPath('xs_write', path);
    const bytes = Buffer.from(value);
    if (bytes.length > limits.xenstoreValueMaxBytes) throw new HypervisorError('xs_write', 'E2BIG', { what: path });
    const isDone = this.#calls.write(this.#connection.handle, this.#transaction, path, bytes, bytes.length);
    if (!isDone) callFailed('xs_write', { what: path });
  }

  directory(path: string): string[] | undefined {
    checkPath('xs_directory', path);
    const address = this.#calls.directory(this.#connection.handle, this.#transaction, path, this.#length);
    if (address === 0) return absent('xs_directory', path);
    return takeStrings(address, Math.min(this.#length[0]!, limits.xenstoreDirectoryNames));
  }

  remove(path: string): void {
    checkPath('xs_rm', path);
    if (this.#calls.remove(this.#connection.handle, this.#transaction, path)) return;
    if (lastErrno() !== errnos.ENOENT) callFailed('xs_rm', { what: path });
  }

  permissions(path: string): XenstorePermission[] | undefined {
    checkPath('xs_get_permissions', path);
    const address = this.#calls.permissions(this.#connection.handle, this.#transaction, path, this.#length);
    if (address === 0) return absent('xs_get_permissions', path);
    const pairs = takeWords(address, this.#length[0]! * 2);
    return Array.from({ length: pairs.length / 2 }, (_, i) => ({
      domid: (asDomid(pairs[i * 2]!) ?? 0) as Domid,
      access: accessNames[pairs[i * 2 + 1]! & accessMask]!,
    }));
  }

  setPermissions(path: string, permissions: readonly XenstorePermission[]): void {
    checkPath('xs_set_permissions', path);
    const pairs = Uint32Array.from(permissions.flatMap(({ domid, access }) => [domid, accessBits[access]]));
    const isDone = this.#calls.setPermissions(
      this.#connection.handle,
      this.#transaction,
      path,
      pairs,
      permissions.length,
    );
    if (!isDone) callFailed('xs_set_permissions', { what: path });
  }
}

/** Right after a call that found nothing. @returns undefined; @throws HypervisorError for any other reason */
function absent(call: string, path: string): undefined {
  const errno = errnoName(lastErrno());
  if (errno !== 'ENOENT' && errno !== 'EACCES') throw new HypervisorError(call, errno, { what: path });
}

/** A connection to xenstored, which answers each call before the next. */
export class XenXenstore extends StoreAccess implements Xenstore {
  readonly #calls: StoreCalls;
  readonly #connection: Connection;
  readonly #poller: Poller;
  readonly #listeners = new Map<string, { readonly path: string; readonly onChange: (path: string) => void }>();
  #events: Watch | undefined;
  #nextToken = 1;

  /** @throws HypervisorError */
  constructor(calls: StoreCalls, poller: Poller) {
    const connection = new Connection(calls);
    super(connection, noTransaction);
    this.#calls = calls;
    this.#connection = connection;
    this.#poller = poller;
  }

  transaction<T>(body: (access: XenstoreAccess) => T): T {
    for (let tries = 0; tries < limits.xenstoreTransactionTries; tries++) {
      const transaction = this.#calls.begin(this.#connection.handle);
      if (transaction === noTransaction) callFailed('xs_transaction_start');
      let result: T;
      try {
        result = body(new StoreAccess(this.#connection, transaction));
      } catch (error) {
        this.#calls.end(this.#connection.handle, transaction, true);
        throw error;
      }
      if (this.#calls.end(this.#connection.handle, transaction, false)) return result;
      if (lastErrno() !== errnos.EAGAIN) callFailed('xs_transaction_end');
    }
    throw new HypervisorError('xs_transaction_end', 'EAGAIN');
  }

  watch(path: string, onChange: (path: string) => void): Closable {
    checkPath('xs_watch', path);
    if (this.#listeners.size >= limits.xenstoreWatches) throw new HypervisorError('xs_watch', 'ENOSPC', { what: path });
    const token = String(this.#nextToken++);
    this.#listeners.set(token, { path, onChange });
    try {
      if (!this.#calls.watch(this.#connection.handle, path, token)) callFailed('xs_watch', { what: path });
      this.#events ??= this.#poller.watch(this.#calls.fileno(this.#connection.handle), () => this.#dispatch());
    } catch (error) {
      this.#listeners.delete(token);
      throw error;
    }
    return { close: () => this.#unwatch(path, token) };
  }

  isIntroduced(domid: Domid): boolean {
    return this.#calls.isIntroduced(this.#connection.handle, domid);
  }

  close(): void {
    this.#listeners.clear();
    this.#events?.close();
    // Ends the watches too, and the thread that the library reads with.
    this.#connection.close();
  }

  #unwatch(path: string, token: string): void {
    if (this.#listeners.delete(token)) this.#calls.unwatch(this.#connection.handle, path, token);
  }

  /** Some events; the descriptor stays readable while there are more. */
  #dispatch(): void {
    for (let events = 0; events < limits.xenstoreBatchEvents && this.#connection.isOpen; events++) {
      const address = this.#calls.checkWatch(this.#connection.handle);
      if (address === 0) return;
      const [path, token] = takeStrings(address, 2);
      this.#listeners.get(token!)?.onChange(path!);
    }
  }
}
