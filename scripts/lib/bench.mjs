import path from 'node:path';
import { backendPrograms } from '../../deploy/backends/programs.mjs';
import { Archive } from '../../deploy/qemu/archive.mjs';
import { Cache } from '../../deploy/qemu/cache.mjs';
import { XenUnavailable } from '../../deploy/qemu/errors.mjs';
import { findMirror } from '../../deploy/qemu/sources.mjs';
import { hostArchitecture, librariesOf, loaderCommand, unpackedPackage } from '../../deploy/qemu/unpacked.mjs';
import { prepare } from './build.mjs';
import { run } from './process.mjs';

const log = (sentence) => process.stderr.write(`${sentence}\n`);

/** What the bench goes without is said in its report. */
async function orMissing(make) {
  try {
    return await make();
  } catch (error) {
    if (!(error instanceof XenUnavailable)) throw error;
    return { missing: error.message };
  }
}

async function storageDaemon() {
  const name = 'qemu-storage-daemon';
  return (await backendPrograms([name], log))[name];
}

/** Header, library and dynamic loader of one tree: the library may need a newer libc than the host's. */
async function libblkio() {
  if (hostArchitecture === undefined) throw new XenUnavailable('unpacking is not made for this processor');
  const archive = new Archive(new Cache(), findMirror(), log, 'trixie');
  const wanted = { architecture: hostArchitecture, name: 'libblkio-dev', label: 'libblkio', prefix: 'libblkio' };
  const { tree, version } = await archive.withFreshIndex(() => unpackedPackage(new Cache(), archive, wanted));
  return {
    include: path.join(tree, 'usr/include'),
    library: path.join(tree, librariesOf(hostArchitecture), 'libblkio.so.1'),
    loader: loaderCommand(hostArchitecture, tree, '').slice(0, -1),
    version,
  };
}

/** The verb: measures in a process of its own, so that what ends the measuring cannot end this one half-way. */
export async function bench(args) {
  await prepare();
  const command = [process.execPath, 'dist/test/bench/main.js', ...args];
  if (args.includes('--help')) return await run(command);
  const prepared = { storageDaemon: await orMissing(storageDaemon), libblkio: await orMissing(libblkio) };
  return await run(command, { env: { VMSG_BENCH_PREPARED: JSON.stringify(prepared) } });
}
