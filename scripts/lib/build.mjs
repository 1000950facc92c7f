import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { ensureInstalled } from './install.mjs';
import { withTreeLock } from './lock.mjs';
import { capture, progress, UserError } from './process.mjs';
import { filesBelow, isWritable, root } from './tree.mjs';

const stampPath = path.join(root, 'dist/.build-stamp');
const tscPath = path.join(root, 'node_modules/typescript/bin/tsc');

function sourceFiles() {
  return ['src', 'api', 'test'].flatMap((directory) => filesBelow(directory, '.ts'));
}

function digest(sources) {
  const hash = createHash('sha256');
  for (const file of ['tsconfig.json', 'package-lock.json', ...sources]) {
    hash.update(`${file}\0`).update(
      createHash('sha256')
        .update(readFileSync(path.join(root, file)))
        .digest(),
    );
  }
  return hash.digest('hex');
}

const outputOf = (source) => `dist/${source.slice(0, -'.ts'.length)}.js`;

/** Outputs of deleted sources would still be found by the test walk and by imports. */
function removeOrphans(sources) {
  const stems = new Set(sources.map((source) => `dist/${source.slice(0, -'.ts'.length)}`));
  for (const suffix of ['.js', '.js.map', '.d.ts']) {
    for (const output of filesBelow('dist', suffix)) {
      if (!stems.has(output.slice(0, -suffix.length))) rmSync(path.join(root, output));
    }
  }
}

async function compile(sources, wanted, lock) {
  rmSync(stampPath, { force: true });
  removeOrphans(sources);
  // The compiler's own record would keep it from writing a file again that somebody deleted.
  if (!sources.every((source) => existsSync(path.join(root, outputOf(source))))) {
    rmSync(path.join(root, 'dist/.tsbuildinfo'), { force: true });
  }
  const { status, output } = await progress('building', () => capture([process.execPath, tscPath, '-p', root], lock));
  if (status !== 0) {
    process.stderr.write(output);
    throw new UserError('The build failed; the compiler says why above.');
  }
  writeFileSync(stampPath, wanted);
}

async function ensureBuilt(announceFresh, lock) {
  const sources = sourceFiles();
  const wanted = digest(sources);
  const stamp = existsSync(stampPath) ? readFileSync(stampPath, 'utf8') : '';
  if (stamp === wanted && sources.every((source) => existsSync(path.join(root, outputOf(source))))) {
    if (announceFresh) process.stderr.write('dist/ is up to date\n');
    return;
  }
  if (!isWritable('dist')) {
    throw new UserError('dist/ is not up to date and this user may not write it; run `npm run build` as its owner.');
  }
  await compile(sources, wanted, lock);
}

/** Installs and builds what is missing or out of date; silent when nothing is. */
export async function prepare({ announceFresh = false } = {}) {
  await withTreeLock(async (lock) => {
    await ensureInstalled(lock);
    await ensureBuilt(announceFresh, lock);
  });
}

/** Only installs, for the steps that shall also run on sources that do not compile. */
export async function prepareTools() {
  await withTreeLock(ensureInstalled);
}
