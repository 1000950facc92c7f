import { accessSync, constants, mkdirSync } from 'node:fs';
import path from 'node:path';
import { isWritable, root } from '../../scripts/lib/tree.mjs';
import { appImage } from './app-image.mjs';
import { Archive } from './archive.mjs';
import { baseImage } from './base-image.mjs';
import { Cache } from './cache.mjs';
import { findQemu } from './qemu.mjs';
import { findMirror } from './sources.mjs';

/** Where this tree's images and the logs of its runs are. */
function outputDirectory(cache) {
  const inTree = path.join(root, 'dist/xen');
  const directory = isWritable('dist') ? inTree : path.join(cache.directory, 'runs');
  mkdirSync(directory, { recursive: true });
  accessSync(directory, constants.W_OK);
  return directory;
}

/**
 * Makes what is missing of the image. Needs the network only for what the cache lacks.
 * @param {(sentence: string) => void} log
 * @returns {Promise<Image>}
 *
 * @typedef {object} Image
 * @property {{command: string[], description: string}} qemu
 * @property {{packages: {name: string, version: string}[], xen: string, kernel: string, initramfs: string,
 *   disk: string}} base
 * @property {string} app the disk with the tree
 * @property {string} directory for logs
 */
export async function buildImage(log) {
  const cache = new Cache();
  const archive = new Archive(cache, findMirror(), log);
  const base = await baseImage(cache, archive);
  const qemu = await findQemu(cache, archive);
  const directory = outputDirectory(cache);
  return { qemu, base, app: await appImage(cache, directory), directory, cache: cache.directory };
}
