import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { progress } from '../../scripts/lib/process.mjs';
import { keyOf } from './cache.mjs';
import { unpackDeb } from './deb.mjs';
import { XenUnavailable } from './errors.mjs';
import { oldestQemu, qemuPackage } from './packages.mjs';
import { findTool, runTool } from './tools.mjs';

const program = 'qemu-system-aarch64';
const hosts = {
  x64: { architecture: 'amd64', libraries: 'usr/lib/x86_64-linux-gnu', loader: 'ld-linux-x86-64.so.2' },
  arm64: { architecture: 'arm64', libraries: 'usr/lib/aarch64-linux-gnu', loader: 'ld-linux-aarch64.so.1' },
};

/** @returns {number[] | undefined} major and minor number in what `--version` prints */
export function parseQemuVersion(text) {
  const [, major, minor] = /^QEMU emulator version (\d+)\.(\d+)/m.exec(text) ?? [];
  return major === undefined ? undefined : [Number(major), Number(minor)];
}

async function versionOf(command) {
  const { stdout } = await runTool([...command, '--version']);
  return parseQemuVersion(stdout.toString());
}

async function hostQemu() {
  const file = findTool(program);
  if (file === undefined) return undefined;
  const version = await versionOf([file]);
  if (version === undefined) return undefined;
  const [major, minor] = version;
  const isNewEnough = major > oldestQemu[0] || (major === oldestQemu[0] && minor >= oldestQemu[1]);
  return isNewEnough ? { command: [file], description: `${major}.${minor} of this host (${file})` } : undefined;
}

/** Unpacks QEMU and all that it depends on, and runs it with that folder's own dynamic loader and libraries. */
async function archiveQemu(cache, archive) {
  const host = hosts[process.arch];
  if (host === undefined) {
    throw new XenUnavailable(
      `${program} is missing (Debian package ${qemuPackage}), and there is none for ${process.arch}`,
    );
  }
  return await archive.withFreshIndex(async () => {
    const packages = await archive.resolve(host.architecture, ['closure', qemuPackage], (index) =>
      index.closure(qemuPackage),
    );
    const main = packages.filter(({ name }) => name === qemuPackage);
    archive.warnUntested(main);
    const tree = await cache.tree(`qemu-${keyOf(packages.map(({ sha256 }) => sha256))}`, async (directory) => {
      const files = await archive.fetch(packages, `QEMU (${packages.length} packages)`);
      await progress('unpacking QEMU', async () => {
        // Directories that packages expect to be links of a merged /usr.
        mkdirSync(path.join(directory, 'usr'));
        for (const file of files) await unpackDeb(file, directory);
      });
    });
    const libraries = path.join(tree, host.libraries);
    const command = [
      path.join(libraries, host.loader),
      '--library-path',
      libraries,
      path.join(tree, 'usr/bin', program),
      '-L',
      path.join(tree, 'usr/share/qemu'),
    ];
    return { command, description: `${main[0].version} of the archive (${tree})` };
  });
}

/** A QEMU that can run the image: the host's, else the archive's. @returns {Promise<{command: string[], description: string}>} */
export async function findQemu(cache, archive) {
  return (await hostQemu()) ?? (await archiveQemu(cache, archive));
}
