import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
} from 'node:fs';
import path from 'node:path';
import { progress } from '../../scripts/lib/process.mjs';
import { filesBelow, root } from '../../scripts/lib/tree.mjs';
import { bundlePrograms } from './bundle.mjs';
import { keyOf } from './cache.mjs';
import { makeExt4 } from './ext4.mjs';
import { fetchBundler, fetchModules } from './node-parts.mjs';
import { bundlers } from './packages.mjs';

/** A run has opened its files long before. */
const ageLimitMs = 10 * 60_000;

const bundleRecipe = path.join(import.meta.dirname, 'bundle.mjs');

/** What of the tree is on the disk; the rest is of no use inside. */
const parts = [
  ['dist/src', '.js'],
  ['dist/src', '.cjs'],
  ['dist/api', '.js'],
  ['dist/test', '.js'],
  ['api', '.json'],
  ['test/golden', '.json'],
  ['deploy/qemu/guest', ''],
  ['deploy/xl', ''],
];

function appFiles() {
  return ['package.json', 'deploy/vmsg.json', ...parts.flatMap(([directory, suffix]) => filesBelow(directory, suffix))];
}

/** Images of older sources, and what killed runs have left. */
function removeOld(directory) {
  for (const name of readdirSync(directory).filter((entry) => /^(app-.*\.ext4.*|job-.*)$/.test(entry))) {
    const file = path.join(directory, name);
    const found = statSync(file, { throwIfNoEntry: false });
    if (found && Date.now() - found.mtimeMs > ageLimitMs) rmSync(file, { recursive: true, force: true });
  }
}

/**
 * The disk with the compiled tree and its modules, mounted on /app in dom0 and every domU.
 * @param {string} directory where it is kept
 * @returns {Promise<string>} the image, named by its content
 */
export async function appImage(cache, directory) {
  const modules = await fetchModules(cache);
  const unpackBundler = await fetchBundler(cache);
  const files = appFiles();
  const key = keyOf(
    modules,
    bundlers,
    readFileSync(bundleRecipe, 'utf8'),
    files.map((file) => [file, readFileSync(path.join(root, file), 'latin1')]),
  );
  const image = path.join(directory, `app-${key}.ext4`);
  if (existsSync(image)) {
    const now = new Date();
    utimesSync(image, now, now);
    return image;
  }
  await progress('building the application image', () =>
    cache.withScratch(async (scratch) => {
      const tree = path.join(scratch, 'tree');
      mkdirSync(tree);
      for (const file of files) cpSync(path.join(root, file), path.join(tree, file));
      cpSync(modules, path.join(tree, 'node_modules'), { recursive: true, verbatimSymlinks: true });
      if (unpackBundler !== undefined) await bundlePrograms(tree, await unpackBundler(scratch), scratch);
      const unfinished = path.join(scratch, 'app.ext4');
      await makeExt4(tree, unfinished, 'app');
      removeOld(directory);
      // The directory may be on another file system than the cache.
      const beside = `${image}.${process.pid}`;
      cpSync(unfinished, beside);
      renameSync(beside, image);
    }),
  );
  return image;
}
