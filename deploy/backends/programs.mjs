import { Archive } from '../qemu/archive.mjs';
import { Cache } from '../qemu/cache.mjs';
import { XenUnavailable } from '../qemu/errors.mjs';
import { findMirror } from '../qemu/sources.mjs';
import { findTool, needTool, runTool } from '../qemu/tools.mjs';
import { hostArchitecture, loaderCommand, unpackedPackage } from '../qemu/unpacked.mjs';
import { compareVersions } from '../qemu/versions.mjs';
import { isTestedVersion, programVersion, rowOf } from './table.mjs';

/** Debian puts programs there that others start. */
const helperDirectory = '/usr/libexec';

/**
 * The host's own program, if it is new enough.
 * @param {string} searchPath directories with colons between them
 * @returns {Promise<BackendProgram | undefined>}
 */
export async function hostProgram(name, searchPath = `${process.env.PATH ?? ''}:${helperDirectory}`) {
  const row = rowOf(name);
  const file = findTool(name, searchPath);
  if (file === undefined) return undefined;
  const { stdout, stderr } = await runTool([file, row.probe]);
  const version = programVersion(row, `${stdout}\n${stderr}`);
  if (version === undefined || (version !== '' && compareVersions(version, `${row.oldest}~`) < 0)) return undefined;
  return { command: [file], version, origin: `this host (${file})` };
}

/** Suites of the archive as they are asked for, so that a host with all programs needs no archive. */
class Suites {
  #cache;
  #log;
  #archives = new Map();

  constructor(cache, log) {
    this.#cache = cache;
    this.#log = log;
  }

  /** @throws XenUnavailable when no archive is known */
  get(suite) {
    const known = this.#archives.get(suite);
    if (known !== undefined) return known;
    const archive = new Archive(this.#cache, findMirror(), this.#log, suite);
    this.#archives.set(suite, archive);
    return archive;
  }
}

/**
 * A program and its libraries, unpacked into the cache.
 * @param {string} architecture in Debian's words
 * @returns {Promise<{tree: string, version: string}>}
 */
function unpackedProgram(cache, suites, architecture, name) {
  const row = rowOf(name);
  const archive = suites.get(row.suite);
  const wanted = { architecture, name: row.package, without: row.without, label: name, prefix: name };
  return archive.withFreshIndex(() => unpackedPackage(cache, archive, wanted));
}

async function archiveProgram(cache, suites, name) {
  const { oldest, suite, file } = rowOf(name);
  const lacking = `${name} ${oldest} or newer is not on this host`;
  if (hostArchitecture === undefined)
    throw new XenUnavailable(`${lacking}, and unpacking is not made for its processor`);
  try {
    const { tree, version } = await unpackedProgram(cache, suites, hostArchitecture, name);
    return { command: loaderCommand(hostArchitecture, tree, file), version, origin: `the archive's ${suite}` };
  } catch (error) {
    if (!(error instanceof XenUnavailable)) throw error;
    throw new XenUnavailable(`${lacking}, and ${error.message}`);
  }
}

async function needNamespaces(name) {
  const unshare = needTool('unshare', 'util-linux');
  const { status } = await runTool([unshare, '--user', '--mount', 'true']);
  if (status !== 0)
    throw new XenUnavailable(`${name} needs user namespaces, which this host does not let this user have`);
}

function describe(row, name, { version, origin }) {
  const [first, end] = row.tested;
  return `  ${name} ${version || 'of unknown version'} of ${origin}, tested with ${first} to below ${end}`;
}

/**
 * The commands that start backends, to which their arguments are appended: of the host's own programs, else of the
 * archive's, which are downloaded and unpacked once for each state of the archive.
 * @param {string[]} names of `backendTable`
 * @param {(sentence: string) => void} log
 * @returns {Promise<Record<string, BackendProgram>>}
 * @throws {XenUnavailable} when something outside the tree is missing; the message says what
 *
 * @typedef {object} BackendProgram
 * @property {string[]} command
 * @property {string} version of the program or the package; '' if the host's program does not tell it
 * @property {string} origin where it is from, for people
 */
export async function backendPrograms(names, log, cache = new Cache()) {
  const suites = new Suites(cache, log);
  const found = {};
  for (const name of names) {
    const row = rowOf(name);
    if (row.isolates) await needNamespaces(name);
    const program = (await hostProgram(name)) ?? (await archiveProgram(cache, suites, name));
    found[name] = program;
    log(describe(row, name, program));
    if (program.version !== '' && !isTestedVersion(row, program.version)) {
      log(`Warning: ${name} ${program.version} is outside the tested range.`);
    }
  }
  return found;
}

/**
 * The same programs for a machine of another architecture, always the archive's.
 * @returns {Promise<{name: string, tree: string, version: string}[]>}
 */
export async function unpackedPrograms(architecture, names, log, cache = new Cache()) {
  const suites = new Suites(cache, log);
  const unpacked = [];
  for (const name of names) unpacked.push({ name, ...(await unpackedProgram(cache, suites, architecture, name)) });
  return unpacked;
}
