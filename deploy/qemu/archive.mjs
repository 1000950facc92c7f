import { readFileSync } from 'node:fs';
import path from 'node:path';
import { UserError } from '../../scripts/lib/process.mjs';
import { keyOf } from './cache.mjs';
import { download, inParallel, NotFound, ProgressBar } from './download.mjs';
import { XenUnavailable } from './errors.mjs';
import { PackageIndex } from './index.mjs';
import { suite as imageSuite, testedVersions } from './packages.mjs';
import { parseRelease, verifyRelease } from './release.mjs';
import { needSuccess, needTool } from './tools.mjs';
import { isTested } from './versions.mjs';

const indexAgeLimitMs = 24 * 3600 * 1000;

/** One suite of a Debian archive: its checked index, and packages by content. */
export class Archive {
  #cache;
  #mirror;
  #log;
  #suite;
  #release;
  #indexAgeLimitMs = indexAgeLimitMs;

  /** @param {(sentence: string) => void} log */
  constructor(cache, mirror, log, suite = imageSuite) {
    this.#cache = cache;
    this.#mirror = mirror;
    this.#log = log;
    this.#suite = suite;
  }

  async #inRelease(noteName) {
    const note = this.#cache.readNote(noteName);
    if (note !== undefined && note.ageMs >= 0 && note.ageMs < this.#indexAgeLimitMs) return note.text;
    const address = `${this.#mirror}/dists/${this.#suite}/InRelease`;
    try {
      return await this.#cache.withScratch(async (directory) => {
        const file = path.join(directory, 'InRelease');
        await download(address, file);
        return readFileSync(file, 'utf8');
      });
    } catch (error) {
      if (!(error instanceof XenUnavailable) || error instanceof NotFound || note === undefined) throw error;
      const days = Math.floor(note.ageMs / indexAgeLimitMs);
      this.#log(`The Debian archive cannot be reached; its index of ${days} days ago is used.`);
      return note.text;
    }
  }

  /** The suite's Release file, its signature checked. */
  async #verified() {
    const noteName = `InRelease-${keyOf(this.#mirror, this.#suite)}`;
    const text = await this.#inRelease(noteName);
    const release = parseRelease(await verifyRelease(this.#cache, text));
    if (release.field('Codename') !== this.#suite) {
      throw new UserError(`The archive has ${release.field('Codename')} where ${this.#suite} should be.`);
    }
    if (this.#cache.readNote(noteName)?.text !== text) await this.#cache.writeNote(noteName, text);
    return release;
  }

  async #packagesFile(architecture) {
    this.#release ??= this.#verified();
    const release = await this.#release;
    const directory = `main/binary-${architecture}`;
    const digest = release.sha256.get(`${directory}/Packages.xz`);
    if (digest === undefined) throw new UserError(`The archive has no index for ${architecture}.`);
    const byHash = release.field('Acquire-By-Hash') === 'yes';
    const name = byHash ? `by-hash/SHA256/${digest}` : 'Packages.xz';
    const address = `${this.#mirror}/dists/${this.#suite}/${directory}/${name}`;
    return { digest, file: await this.#cache.blob('sha256', digest, (file) => download(address, file)) };
  }

  /**
   * Looks packages up, once for each state of the index.
   * @param {(index: PackageIndex) => object[]} choose
   * @param {unknown} question what `choose` depends on besides the index
   * @returns {Promise<object[]>} name, version, filename, sha256 and size of each
   */
  async resolve(architecture, question, choose) {
    const { digest, file } = await this.#packagesFile(architecture);
    const noteName = `packages-${keyOf(digest, question)}`;
    const note = this.#cache.readNote(noteName);
    if (note !== undefined) return JSON.parse(note.text);
    const xz = needTool('xz', 'xz-utils');
    const index = new PackageIndex((await needSuccess([xz, '--decompress', '--stdout', file])).toString());
    const found = choose(index).map(({ name, version, filename, sha256, size }) => ({
      name,
      version,
      filename,
      sha256,
      size,
    }));
    await this.#cache.writeNote(noteName, JSON.stringify(found));
    return found;
  }

  /** Brings packages into the cache. @returns {Promise<string[]>} their files, in the order of `packages` */
  async fetch(packages, label) {
    const total = packages.reduce((sum, { size }) => sum + size, 0);
    const bar = new ProgressBar(`downloading ${label}`, total);
    try {
      return await inParallel(packages, ({ filename, sha256 }) =>
        this.#cache.blob('sha256', sha256, (file) =>
          download(`${this.#mirror}/${filename}`, file, (bytes) => bar.add(bytes)),
        ),
      );
    } finally {
      bar.end();
    }
  }

  /** Runs `work`, and again with a new index if a file of the one at hand has left the archive. */
  async withFreshIndex(work) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof NotFound)) throw error;
      this.#release = undefined;
      this.#indexAgeLimitMs = 0;
      return await work();
    }
  }

  /** Says which of the packages were never tried in this version. */
  warnUntested(packages) {
    for (const { name, version } of packages) {
      const range = testedVersions[name];
      if (range !== undefined && !isTested(version, range)) {
        this.#log(`Warning: ${name} ${version} is outside the tested range ${range[0]} to below ${range[1]}.`);
      }
    }
  }
}
