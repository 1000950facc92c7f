/** A program or library of others, or a sentence that says why there is none. */
type Made<T> = T | { readonly missing: string };

/** What `npm run bench` has made ready of others (scripts/lib/bench.mjs). */
export interface Prepared {
  readonly storageDaemon: Made<{
    readonly command: readonly string[];
    readonly version: string;
    readonly origin: string;
  }>;
  /** libblkio: include directory, the library, and what starts a program that is linked with it. */
  readonly libblkio: Made<{
    readonly include: string;
    readonly library: string;
    readonly loader: readonly string[];
    readonly version: string;
  }>;
}

const notAsked = { missing: 'it is made ready by `npm run bench`' } as const;

/** @param text of VMSG_BENCH_PREPARED */
export function readPrepared(text = process.env.VMSG_BENCH_PREPARED): Prepared {
  return text === undefined ? { storageDaemon: notAsked, libblkio: notAsked } : (JSON.parse(text) as Prepared);
}

export const missingDaemon = ({ missing }: { readonly missing: string }): string =>
  `no qemu-storage-daemon: ${missing}`;

/** What was found, one fact a line. */
export function preparedLines({ storageDaemon, libblkio }: Prepared): string[] {
  const daemon =
    'missing' in storageDaemon
      ? `none: ${storageDaemon.missing}`
      : `${storageDaemon.version} of ${storageDaemon.origin}`;
  const library = 'missing' in libblkio ? `none: ${libblkio.missing}` : libblkio.version;
  return [`qemu-storage-daemon ${daemon}`, `libblkio ${library}`];
}
