import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { UserError } from '../../scripts/lib/process.mjs';
import { root } from '../../scripts/lib/tree.mjs';

const scratchAgeLimitMs = 24 * 3600 * 1000;
/** Trees that no build has used for so long are superseded. */
const treeAgeLimitMs = 30 * 24 * 3600 * 1000;

function canCreate(directory) {
  let existing = directory;
  while (!existsSync(existing)) existing = path.dirname(existing);
  try {
    accessSync(existing, constants.W_OK | constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The user's cache directory; where that cannot be written, one inside node_modules, which everything ignores. */
export function cacheDirectory(env = process.env) {
  const configured = env.XDG_CACHE_HOME;
  const base = configured && path.isAbsolute(configured) ? configured : path.join(env.HOME || homedir(), '.cache');
  const wanted = path.join(base, 'virtio-msg-bridge');
  return canCreate(wanted) ? wanted : path.join(root, 'node_modules/.cache/virtio-msg-bridge');
}

/** @returns {Promise<string>} the digest of a file in hex */
export async function digestFile(file, algorithm) {
  const hash = createHash(algorithm);
  await pipeline(createReadStream(file), hash);
  return hash.digest('hex');
}

/** @returns {string} a short name for values that a cached thing was made from */
export function keyOf(...values) {
  return createHash('sha256').update(JSON.stringify(values)).digest('hex').slice(0, 24);
}

/**
 * Files by digest (`blobs`), directories by the key of what they were made from (`trees`), small texts (`notes`).
 * Everything is made in `scratch` and renamed when it is complete, so any number of builders may share the directory
 * and a killed one leaves nothing half-done under its final name.
 */
export class Cache {
  constructor(directory = cacheDirectory()) {
    this.directory = directory;
    for (const name of ['blobs', 'trees', 'notes', 'scratch'])
      mkdirSync(path.join(directory, name), { recursive: true });
    this.#removeOld('scratch', scratchAgeLimitMs);
    this.#removeOld('trees', treeAgeLimitMs);
  }

  #removeOld(name, ageLimitMs) {
    const parent = path.join(this.directory, name);
    for (const entry of readdirSync(parent)) {
      const file = path.join(parent, entry);
      const { mtimeMs } = statSync(file, { throwIfNoEntry: false }) ?? { mtimeMs: Date.now() };
      if (Date.now() - mtimeMs > ageLimitMs) rmSync(file, { recursive: true, force: true });
    }
  }

  /** Runs `work` with a directory of its own that is removed afterwards. */
  async withScratch(work) {
    const directory = mkdtempSync(path.join(this.directory, 'scratch/'));
    try {
      return await work(directory);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }

  /**
   * A file known by its digest. One that is there is checked again, because nothing else guards the directory.
   * @param {string} algorithm `sha256` or `sha512`
   * @param {string} digest in hex
   * @param {(file: string) => Promise<void>} produce writes the file; a wrong digest is an error
   * @returns {Promise<string>} its path
   */
  async blob(algorithm, digest, produce) {
    const target = path.join(this.directory, 'blobs', `${algorithm}-${digest}`);
    if (existsSync(target) && (await digestFile(target, algorithm)) === digest) return target;
    return await this.withScratch(async (directory) => {
      const file = path.join(directory, 'blob');
      await produce(file);
      const actual = await digestFile(file, algorithm);
      if (actual !== digest) throw new UserError(`A download has the ${algorithm} ${actual}, should have ${digest}.`);
      renameSync(file, target);
      return target;
    });
  }

  /**
   * A directory made from what `key` stands for.
   * @param {(directory: string) => Promise<void>} produce fills an empty directory
   */
  async tree(key, produce) {
    const target = path.join(this.directory, 'trees', key);
    if (existsSync(target)) {
      const now = new Date();
      utimesSync(target, now, now);
      return target;
    }
    return await this.withScratch(async (scratch) => {
      const directory = path.join(scratch, 'tree');
      mkdirSync(directory);
      await produce(directory);
      // Unpacking may have given it the date of a package.
      const now = new Date();
      utimesSync(directory, now, now);
      try {
        renameSync(directory, target);
      } catch (error) {
        // Another builder was faster, with the same content.
        if (!['ENOTEMPTY', 'EEXIST'].includes(error.code)) throw error;
      }
      return target;
    });
  }

  /** @returns {{text: string, ageMs: number} | undefined} */
  readNote(name) {
    const file = path.join(this.directory, 'notes', name);
    const found = statSync(file, { throwIfNoEntry: false });
    return found && { text: readFileSync(file, 'utf8'), ageMs: Date.now() - found.mtimeMs };
  }

  async writeNote(name, text) {
    await this.withScratch((directory) => {
      const file = path.join(directory, 'note');
      writeFileSync(file, text);
      renameSync(file, path.join(this.directory, 'notes', name));
    });
  }
}
