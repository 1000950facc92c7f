import { readFileSync } from 'node:fs';
import path from 'node:path';
import { capture, progress, UserError } from './process.mjs';
import { isWritable, root } from './tree.mjs';

const shownHeadLines = 12;
const shownTailLines = 8;

function readPackages(relative) {
  try {
    const { packages } = JSON.parse(readFileSync(path.join(root, relative), 'utf8'));
    return new Map(Object.entries(packages).filter(([name]) => name !== ''));
  } catch (error) {
    if (error.code === 'ENOENT' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function admits(list, value) {
  if (list === undefined) return true;
  return list.every((item) => item.startsWith('!')) ? !list.includes(`!${value}`) : list.includes(value);
}

function isForThisMachine(entry) {
  return admits(entry.os, process.platform) && admits(entry.cpu, process.arch) && admits(entry.libc, 'glibc');
}

/**
 * Compares package-lock.json with the record that npm leaves in node_modules when an install is complete.
 * @param {Map<string, object>} wanted
 * @param {Map<string, object> | undefined} installed
 */
export function isInstalled(wanted, installed) {
  if (installed === undefined) return false;
  for (const [name, entry] of wanted) {
    const found = installed.get(name);
    // npm leaves out optional packages of other C libraries too; which one this machine has is npm's business.
    if (found === undefined && (entry.optional || entry.peer) && (entry.libc || !isForThisMachine(entry))) continue;
    if (found?.version !== entry.version || found.integrity !== entry.integrity) return false;
  }
  return [...installed.keys()].every((name) => wanted.has(name));
}

/** npm as it runs this script, else the one in PATH. */
export function npmCommand() {
  const script = process.env.npm_execpath;
  return script?.endsWith('.js') ? [process.execPath, script] : ['npm'];
}

/** npm begins with the reason and ends with the path of its log. */
function shorten(lines) {
  if (lines.length <= shownHeadLines + shownTailLines) return lines;
  return [...lines.slice(0, shownHeadLines), '…', ...lines.slice(-shownTailLines)];
}

/** Installs what package-lock.json says unless node_modules holds exactly that. */
export async function ensureInstalled(lock) {
  const wanted = readPackages('package-lock.json');
  if (wanted === undefined) throw new UserError('package-lock.json is missing or damaged; restore it from git.');
  if (isInstalled(wanted, readPackages('node_modules/.package-lock.json'))) return;
  if (!isWritable('node_modules')) {
    throw new UserError('node_modules is not up to date and this user may not write it; run `npm ci` as its owner.');
  }
  const count = [...wanted.values()].filter(isForThisMachine).length;
  // NODE_ENV=production would leave the compiler out.
  const command = [...npmCommand(), 'ci', '--ignore-scripts', '--include=dev', '--no-audit', '--no-fund'];
  const { status, output } = await progress(`installing ${count} packages`, () => capture(command, lock));
  if (status === 0) return;
  process.stderr.write(`${shorten(output.trimEnd().split('\n')).join('\n')}\n`);
  throw new UserError('The packages could not be installed; npm says why above. Check the network and try again.');
}
