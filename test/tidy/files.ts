import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { parseSources, type SourceModel } from './parse.ts';

const ignored = new Set(['.git', 'node_modules', 'dist', 'coverage']);

function filesBelow(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true })
    .filter((entry) => !ignored.has(entry.name))
    .flatMap((entry) => {
      const file = path.posix.join(directory, entry.name);
      return entry.isDirectory() ? filesBelow(file) : [file];
    });
}

/** Files of the package that are tracked or could be; all of them where there is no usable git. */
function packageFiles(): string[] {
  try {
    const listed = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const files = listed.split('\0').filter((file) => file !== '' && existsSync(file) && statSync(file).isFile());
    if (files.length > 0) return files;
  } catch {
    // A package without git, or one that git does not trust.
  }
  return filesBelow('.');
}

/** Every file with its text, binary ones left out. */
export function packageTexts(): Map<string, string> {
  const texts = packageFiles().map((file) => [file, readFileSync(file, 'utf8')] as const);
  return new Map(texts.filter(([, text]) => !text.includes('\0')));
}

/** The parsed sources: TypeScript of the package and its tests, and the scripts. */
export function packageSources(): SourceModel[] {
  const isSource = (file: string): boolean => /^(src|api|test)\/.*\.ts$|^(scripts|deploy)\/.*\.mjs$/.test(file);
  return parseSources(new Map([...packageTexts()].filter(([file]) => isSource(file))));
}
