import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Scope } from '../../src/kit/scope.ts';
import type { Prepared } from './prepared.ts';

// The sources are not copied to where the compiled TypeScript lies.
const sources = fileURLToPath(new URL('../../../test/bench/c/', import.meta.url));

/** Commands that start the compiled baselines. */
export interface Baselines {
  readonly ring: string;
  readonly blk: string;
  readonly join: string;
  /** Or why there is none. */
  readonly libblkio: readonly string[] | string;
}

/**
 * Compiles the C programs into a directory that goes with the scope.
 * @returns undefined when this machine has no gcc. @throws Error with what gcc says about a source
 */
export function compileBaselines({ libblkio }: Prepared, scope: Scope): Baselines | undefined {
  if (spawnSync('gcc', ['--version']).error !== undefined) return undefined;
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-bench-c-'));
  scope.defer(() => rmSync(directory, { recursive: true, force: true }));
  const compile = (name: string, before: readonly string[] = [], after: readonly string[] = []): string => {
    const output = path.join(directory, name);
    const flags = ['-std=gnu11', '-O2', '-Wall', '-Wextra', ...before];
    const { status, stderr } = spawnSync('gcc', [...flags, '-o', output, path.join(sources, `${name}.c`), ...after]);
    if (status !== 0) throw new Error(`gcc does not compile ${name}.c:\n${stderr}`);
    return output;
  };
  const [ring, blk, join] = [compile('ring'), compile('blk'), compile('join')];
  return { ring, blk, join, libblkio: withLibblkio(libblkio, compile) };
}

type Compile = (name: string, before: readonly string[], after: readonly string[]) => string;

function withLibblkio(libblkio: Prepared['libblkio'], compile: Compile): readonly string[] | string {
  if ('missing' in libblkio) return `no libblkio: ${libblkio.missing}`;
  const { include, library, loader } = libblkio;
  // What the library itself needs of a newer libc is found when the program starts.
  return [...loader, compile('libblkio', ['-I', include], [library, '-Wl,--allow-shlib-undefined'])];
}
