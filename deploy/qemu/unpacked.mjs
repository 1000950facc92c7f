import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { progress } from '../../scripts/lib/process.mjs';
import { keyOf } from './cache.mjs';
import { unpackDeb } from './deb.mjs';

/** Debian's architectures by `process.arch`. */
const architectures = { x64: 'amd64', arm64: 'arm64' };

const platforms = {
  amd64: { libraries: 'usr/lib/x86_64-linux-gnu', loader: 'ld-linux-x86-64.so.2' },
  arm64: { libraries: 'usr/lib/aarch64-linux-gnu', loader: 'ld-linux-aarch64.so.1' },
};

/** Debian's name for the architecture of this host; `undefined` where unpacked programs are not supported. */
export const hostArchitecture = architectures[process.arch];

/** The directory of a tree that has the libraries. @param {string} architecture in Debian's words */
export function librariesOf(architecture) {
  return platforms[architecture].libraries;
}

/**
 * What starts a program of an unpacked tree: the tree's own dynamic loader with the tree's own libraries.
 * @param {string} architecture of the tree, in Debian's words
 * @param {string} tree where it will be when the program runs
 * @param {string} program path inside the tree
 * @returns {string[]}
 */
export function loaderCommand(architecture, tree, program) {
  const directory = path.join(tree, librariesOf(architecture));
  return [path.join(directory, platforms[architecture].loader), '--library-path', directory, path.join(tree, program)];
}

async function unpackAll(files, directory) {
  // Directories that packages expect to be links of a merged /usr.
  mkdirSync(path.join(directory, 'usr'));
  for (const file of files) await unpackDeb(file, directory);
}

/**
 * A package and all that it depends on, unpacked once for each state of the archive. To be called within
 * `withFreshIndex`.
 * @param {{architecture: string, name: string, without?: string[], label: string, prefix: string}} wanted `without`
 *   names dependencies to leave out; `prefix` begins the tree's name in the cache
 * @returns {Promise<{tree: string, version: string}>} of the package
 */
export async function unpackedPackage(cache, archive, { architecture, name, without = [], label, prefix }) {
  const packages = await archive.resolve(architecture, ['closure', name, ...without], (index) =>
    index.closure(name, without),
  );
  const main = packages.find((found) => found.name === name);
  archive.warnUntested([main]);
  const tree = await cache.tree(`${prefix}-${keyOf(packages.map(({ sha256 }) => sha256))}`, async (directory) => {
    const files = await archive.fetch(packages, `${label} (${packages.length} packages)`);
    await progress(`unpacking ${label}`, () => unpackAll(files, directory));
  });
  return { tree, version: main.version };
}
