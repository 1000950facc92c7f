import koffi from 'koffi';
import { HypervisorError } from './errors.ts';

/**
 * The foreign functions of the Xen libraries. They are loaded when first used, so that a machine without Xen can run
 * everything else. Nothing here throws on failure of a call: a null pointer, false or -1 means `lastErrno()` of
 * libc/native. Addresses and handles are Numbers, 0 where C has NULL.
 */

type Address = number;
type Declare = <T>(prototype: string) => T;

/** Libraries differ in their minor version only where the interface grew; libxenctrl has that of Xen in its name. */
function openLibrary(names: readonly string[], debianPackage: string): Declare {
  for (const name of names) {
    try {
      const library = koffi.load(name);
      return (prototype) => library.func(prototype) as never;
    } catch {
      // The next name, or the error below: what dlopen says of a missing file helps nobody.
    }
  }
  const hint = `Install the Xen libraries (Debian: ${debianPackage}), and run in a domain of Xen.`;
  throw new HypervisorError('dlopen', 'ENOENT', { what: names[0]! }, hint);
}

type Open = (logger: Address, flags: number) => Address;
type Close = (handle: Address) => number;

function declareGrants(logger: Address) {
  const declare = openLibrary(['libxengnttab.so.1'], 'libxengnttab1');
  return {
    logger,
    open: declare<Open>('uintptr_t xengnttab_open(uintptr_t, unsigned int)'),
    close: declare<Close>('int xengnttab_close(uintptr_t)'),
    mapRefs: declare<
      (handle: Address, count: number, domid: number, references: Uint32Array, protection: number) => Address
    >('uintptr_t xengnttab_map_domain_grant_refs(uintptr_t, uint32_t, uint32_t, void *, int)'),
    mapRefNotify: declare<
      (handle: Address, domid: number, reference: number, protection: number, byte: number, port: number) => Address
    >('uintptr_t xengnttab_map_grant_ref_notify(uintptr_t, uint32_t, uint32_t, int, uint32_t, uint32_t)'),
    unmap: declare<(handle: Address, start: Address, pages: number) => number>(
      'int xengnttab_unmap(uintptr_t, uintptr_t, uint32_t)',
    ),
  };
}
export type GrantCalls = ReturnType<typeof declareGrants>;

function declareEvents(logger: Address) {
  const declare = openLibrary(['libxenevtchn.so.1'], 'libxenevtchn1');
  return {
    logger,
    open: declare<Open>('uintptr_t xenevtchn_open(uintptr_t, unsigned int)'),
    close: declare<Close>('int xenevtchn_close(uintptr_t)'),
    fd: declare<(handle: Address) => number>('int xenevtchn_fd(uintptr_t)'),
    notify: declare<(handle: Address, port: number) => number>('int xenevtchn_notify(uintptr_t, uint32_t)'),
    bindUnbound: declare<(handle: Address, remote: number) => number>(
      'int xenevtchn_bind_unbound_port(uintptr_t, uint32_t)',
    ),
    bindInterdomain: declare<(handle: Address, remote: number, port: number) => number>(
      'int xenevtchn_bind_interdomain(uintptr_t, uint32_t, uint32_t)',
    ),
    unbind: declare<(handle: Address, port: number) => number>('int xenevtchn_unbind(uintptr_t, uint32_t)'),
  };
}
export type EventCalls = ReturnType<typeof declareEvents>;

function declareStore() {
  const declare = openLibrary(['libxenstore.so.4'], 'libxenstore4');
  return {
    open: declare<(flags: number) => Address>('uintptr_t xs_open(unsigned long)'),
    close: declare<(handle: Address) => void>('void xs_close(uintptr_t)'),
    fileno: declare<(handle: Address) => number>('int xs_fileno(uintptr_t)'),
    read: declare<(handle: Address, transaction: number, path: string, length: Uint32Array) => Address>(
      'uintptr_t xs_read(uintptr_t, uint32_t, str, void *)',
    ),
    write: declare<(handle: Address, transaction: number, path: string, value: Uint8Array, length: number) => boolean>(
      'bool xs_write(uintptr_t, uint32_t, str, void *, unsigned int)',
    ),
    directory: declare<(handle: Address, transaction: number, path: string, count: Uint32Array) => Address>(
      'uintptr_t xs_directory(uintptr_t, uint32_t, str, void *)',
    ),
    remove: declare<(handle: Address, transaction: number, path: string) => boolean>(
      'bool xs_rm(uintptr_t, uint32_t, str)',
    ),
    permissions: declare<(handle: Address, transaction: number, path: string, count: Uint32Array) => Address>(
      'uintptr_t xs_get_permissions(uintptr_t, uint32_t, str, void *)',
    ),
    setPermissions: declare<
      (handle: Address, transaction: number, path: string, pairs: Uint32Array, count: number) => boolean
    >('bool xs_set_permissions(uintptr_t, uint32_t, str, void *, unsigned int)'),
    begin: declare<(handle: Address) => number>('uint32_t xs_transaction_start(uintptr_t)'),
    end: declare<(handle: Address, transaction: number, abort: boolean) => boolean>(
      'bool xs_transaction_end(uintptr_t, uint32_t, bool)',
    ),
    watch: declare<(handle: Address, path: string, token: string) => boolean>('bool xs_watch(uintptr_t, str, str)'),
    unwatch: declare<(handle: Address, path: string, token: string) => boolean>('bool xs_unwatch(uintptr_t, str, str)'),
    checkWatch: declare<(handle: Address) => Address>('uintptr_t xs_check_watch(uintptr_t)'),
    isIntroduced: declare<(handle: Address, domid: number) => boolean>(
      'bool xs_is_domain_introduced(uintptr_t, unsigned int)',
    ),
  };
}
export type StoreCalls = ReturnType<typeof declareStore>;

function declareForeign(logger: Address) {
  const declare = openLibrary(['libxenforeignmemory.so.1'], 'libxenforeignmemory1');
  return {
    logger,
    open: declare<Open>('uintptr_t xenforeignmemory_open(uintptr_t, unsigned int)'),
    close: declare<Close>('int xenforeignmemory_close(uintptr_t)'),
    map: declare<
      (
        handle: Address,
        domid: number,
        protection: number,
        pages: number,
        frames: BigUint64Array,
        errors: Int32Array,
      ) => Address
    >('uintptr_t xenforeignmemory_map(uintptr_t, uint32_t, int, size_t, void *, void *)'),
    unmap: declare<(handle: Address, start: Address, pages: number) => number>(
      'int xenforeignmemory_unmap(uintptr_t, uintptr_t, size_t)',
    ),
  };
}
export type ForeignCalls = ReturnType<typeof declareForeign>;

/** Minor versions of Xen 4 whose libxenctrl is looked for, newest first. */
const controlMinors = Array.from({ length: 22 }, (_, i) => 32 - i);

function declareControl(logger: Address) {
  const declare = openLibrary(
    controlMinors.map((minor) => `libxenctrl.so.4.${minor}`),
    'libxenmisc4.20',
  );
  return {
    logger,
    open: declare<(logger: Address, buildLogger: Address, flags: number) => Address>(
      'uintptr_t xc_interface_open(uintptr_t, uintptr_t, unsigned int)',
    ),
    close: declare<Close>('int xc_interface_close(uintptr_t)'),
    version: declare<(handle: Address, command: number, out: Uint8Array) => number>(
      'int xc_version(uintptr_t, int, void *)',
    ),
  };
}
export type ControlCalls = ReturnType<typeof declareControl>;

function declareFacts(logger: Address) {
  const declare = openLibrary(['libxenhypfs.so.1'], 'libxenhypfs1');
  return {
    logger,
    open: declare<Open>('uintptr_t xenhypfs_open(uintptr_t, unsigned int)'),
    close: declare<Close>('int xenhypfs_close(uintptr_t)'),
    read: declare<(handle: Address, path: string) => Address>('uintptr_t xenhypfs_read(uintptr_t, str)'),
  };
}
export type FactCalls = ReturnType<typeof declareFacts>;

const silentLevel = 10;
const noProgress = 0o24;

/**
 * A logger that says nothing. The libraries' own one writes every failed call to stderr, which a guest could make
 * happen for ever; failures are reported by our own means.
 */
function silentLogger(): Address {
  const declare = openLibrary(['libxentoollog.so.1'], 'libxentoollog1');
  const create = declare<(file: Address, level: number, flags: number) => Address>(
    'uintptr_t xtl_createlogger_stdiostream(uintptr_t, int, unsigned int)',
  );
  return create(0, silentLevel, noProgress);
}

/** The libraries of one thread, each loaded when first asked for. @throws HypervisorError ENOENT when not installed */
export class XenLibraries {
  #logger: Address | undefined;
  #grants: GrantCalls | undefined;
  #events: EventCalls | undefined;
  #store: StoreCalls | undefined;
  #foreign: ForeignCalls | undefined;
  #control: ControlCalls | undefined;
  #facts: FactCalls | undefined;

  get grants(): GrantCalls {
    this.#grants ??= declareGrants(this.#silent);
    return this.#grants;
  }

  get events(): EventCalls {
    this.#events ??= declareEvents(this.#silent);
    return this.#events;
  }

  get store(): StoreCalls {
    this.#store ??= declareStore();
    return this.#store;
  }

  get foreign(): ForeignCalls {
    this.#foreign ??= declareForeign(this.#silent);
    return this.#foreign;
  }

  get control(): ControlCalls {
    this.#control ??= declareControl(this.#silent);
    return this.#control;
  }

  get facts(): FactCalls {
    this.#facts ??= declareFacts(this.#silent);
    return this.#facts;
  }

  /** Never destroyed: one small block per thread. */
  get #silent(): Address {
    this.#logger ??= silentLogger();
    return this.#logger;
  }
}

const libc = koffi.load('libc.so.6');
const free = libc.func('void free(uintptr_t)') as unknown as (address: Address) => void;
const memcpy = libc.func('uintptr_t memcpy(void *, uintptr_t, size_t)') as unknown as (
  out: Uint8Array | Uint32Array,
  from: Address,
  length: number,
) => Address;

/** For the device nodes of Xen. */
export const ioctl = libc.func('int ioctl(int, unsigned long, void *)') as unknown as (
  fd: number,
  request: number,
  argument: Uint8Array,
) => number;

const strlen = libc.func('size_t strlen(uintptr_t)') as unknown as (address: Address) => number;

/** Copies bytes out of a block that a library has allocated, and frees it. */
export function takeBytes(address: Address, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  if (length > 0) memcpy(bytes, address, length);
  free(address);
  return bytes;
}

/** The same for text that ends with a zero. */
export function takeText(address: Address): string {
  return new TextDecoder().decode(takeBytes(address, strlen(address)));
}

/** The same for 32-bit numbers. */
export function takeWords(address: Address, count: number): Uint32Array {
  const words = new Uint32Array(count);
  if (count > 0) memcpy(words, address, count * 4);
  free(address);
  return words;
}

/** The same for an array of pointers to strings. */
export function takeStrings(address: Address, count: number): string[] {
  const strings = count > 0 ? (koffi.decode(BigInt(address), 'char *', count) as string[]) : [];
  free(address);
  return strings;
}
