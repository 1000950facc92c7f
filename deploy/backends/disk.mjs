import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { progress } from '../../scripts/lib/process.mjs';
import { Cache, keyOf } from '../qemu/cache.mjs';
import { makeExt4 } from '../qemu/ext4.mjs';
import { installProgram } from './image.mjs';
import { unpackedPrograms } from './programs.mjs';

/** To be raised when this file makes another disk of the same programs. */
const recipeVersion = 1;

async function build(architecture, programs, folder, tree) {
  const content = path.join(tree, 'content');
  const found = {};
  for (const program of programs) {
    const command = installProgram(architecture, program, content, folder);
    found[program.name] = { command, version: program.version };
  }
  await makeExt4(path.join(content, folder), path.join(tree, 'programs.ext4'), 'programs');
  rmSync(content, { recursive: true });
  writeFileSync(path.join(tree, 'programs.json'), JSON.stringify(found));
}

/**
 * Programs with their libraries as a disk, made once for each state of the archive.
 * @param {string} architecture in Debian's words
 * @param {string[]} names of `backendTable`
 * @param {string} folder where the disk will be mounted, absolute
 * @param {(sentence: string) => void} log
 * @returns {Promise<{disk: string, programs: Record<string, {command: string[], version: string}>}>} the image, and
 *   what starts each program once it is mounted
 * @throws {import('../qemu/errors.mjs').XenUnavailable} when something outside the tree is missing
 */
export async function programDisk(architecture, names, folder, log, cache = new Cache()) {
  const programs = await unpackedPrograms(architecture, names, log, cache);
  const key = keyOf(recipeVersion, architecture, folder, programs);
  const tree = await cache.tree(`programs-${key}`, (directory) =>
    progress('building the disk of vhost-user programs', () => build(architecture, programs, folder, directory)),
  );
  const found = JSON.parse(readFileSync(path.join(tree, 'programs.json'), 'utf8'));
  return { disk: path.join(tree, 'programs.ext4'), programs: found };
}
