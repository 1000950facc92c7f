import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Scope } from '../../src/kit/scope.ts';

// The sources are not copied to where the compiled TypeScript lies.
const sources = fileURLToPath(new URL('../../../test/bench/c/', import.meta.url));
const programs = ['ring', 'blk', 'join'] as const;

/** Paths of the compiled baselines. */
export type Baselines = Readonly<Record<(typeof programs)[number], string>>;

/**
 * Compiles the C programs into a directory that goes with the scope.
 * @returns undefined when this machine has no gcc. @throws Error with what gcc says about a source
 */
export function compileBaselines(scope: Scope): Baselines | undefined {
  if (spawnSync('gcc', ['--version']).error !== undefined) return undefined;
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-bench-c-'));
  scope.defer(() => rmSync(directory, { recursive: true, force: true }));
  const flags = ['-std=gnu11', '-O2', '-Wall', '-Wextra'];
  const compiled = programs.map((name) => {
    const output = path.join(directory, name);
    const { status, stderr } = spawnSync('gcc', [...flags, '-o', output, path.join(sources, `${name}.c`)]);
    if (status !== 0) throw new Error(`gcc does not compile ${name}.c:\n${stderr}`);
    return [name, output] as const;
  });
  return Object.fromEntries(compiled) as Baselines;
}
