import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { librariesOf, loaderCommand } from '../qemu/unpacked.mjs';
import { rowOf } from './table.mjs';

const isLibrary = (name) => /\.so(\.|$)/.test(name);

/**
 * Copies what a program needs of its tree, the file and its libraries, into a folder of a disk image.
 * @param {string} architecture in Debian's words
 * @param {{name: string, tree: string}} unpacked of `unpackedPrograms`
 * @param {string} root directory that becomes the root of the image
 * @param {string} folder inside the image, absolute; the program gets a folder of its own in it
 * @returns {string[]} the command that starts the program inside the image
 */
export function installProgram(architecture, { name, tree }, root, folder) {
  const { file } = rowOf(name);
  const inside = path.join(folder, name);
  const target = path.join(root, inside);
  const libraries = librariesOf(architecture);
  const copied = readdirSync(path.join(tree, libraries)).filter(isLibrary);
  for (const part of [file, ...copied.map((entry) => path.join(libraries, entry))]) {
    mkdirSync(path.dirname(path.join(target, part)), { recursive: true });
    cpSync(path.join(tree, part), path.join(target, part), { recursive: true, verbatimSymlinks: true });
  }
  return loaderCommand(architecture, inside, file);
}
