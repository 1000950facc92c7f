import path from 'node:path';
import { XenUnavailable } from './errors.mjs';
import { oldestQemu, qemuPackage } from './packages.mjs';
import { findTool, runTool } from './tools.mjs';
import { hostArchitecture, loaderCommand, unpackedPackage } from './unpacked.mjs';

const program = 'qemu-system-aarch64';

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

/** QEMU and all that it depends on, unpacked. */
async function archiveQemu(cache, archive) {
  if (hostArchitecture === undefined) {
    throw new XenUnavailable(
      `${program} is missing (Debian package ${qemuPackage}), and there is none for ${process.arch}`,
    );
  }
  return await archive.withFreshIndex(async () => {
    const { tree, version } = await unpackedPackage(cache, archive, {
      architecture: hostArchitecture,
      name: qemuPackage,
      label: 'QEMU',
      prefix: 'qemu',
    });
    const start = loaderCommand(hostArchitecture, tree, path.join('usr/bin', program));
    const command = [...start, '-L', path.join(tree, 'usr/share/qemu')];
    return { command, description: `${version} of the archive (${tree})` };
  });
}

/** A QEMU that can run the image: the host's, else the archive's. @returns {Promise<{command: string[], description: string}>} */
export async function findQemu(cache, archive) {
  return (await hostQemu()) ?? (await archiveQemu(cache, archive));
}
