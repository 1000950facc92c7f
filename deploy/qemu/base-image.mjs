import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { progress } from '../../scripts/lib/process.mjs';
import { keyOf } from './cache.mjs';
import { writeCpio } from './cpio.mjs';
import { unpackDeb } from './deb.mjs';
import { inParallel } from './download.mjs';
import { makeExt4 } from './ext4.mjs';
import { fetchNode } from './node-parts.mjs';
import {
  guestArchitecture,
  guestNode,
  hypervisorPackage,
  initramfsModules,
  kernelMetaPackage,
  kernelModules,
  packageParts,
  rootPackages,
  xenDirectory,
} from './packages.mjs';
import { needSuccess, needTool } from './tools.mjs';

/** To be raised when this file makes another image of the same packages. */
const recipeVersion = 1;
const moduleDirectory = 'usr/lib/xen-modules';
const initramfsInit = path.join(import.meta.dirname, 'guest/initramfs-init');

/** Names of what the image is made of, at one state of the archive. */
async function choosePackages(archive) {
  const question = [rootPackages, hypervisorPackage, kernelMetaPackage];
  return await archive.resolve(guestArchitecture, question, (index) => {
    const meta = index.need(kernelMetaPackage);
    const kernel = /\blinux-image-\d\S*/.exec(meta.depends)?.[0];
    return [meta, index.need(kernel), ...[hypervisorPackage, ...rootPackages].map((name) => index.need(name))];
  });
}

function link(target, file) {
  rmSync(file, { recursive: true, force: true });
  mkdirSync(path.dirname(file), { recursive: true });
  symlinkSync(target, file);
}

/** What the configure scripts of a full installation would have done, as far as it is needed. */
function finishRoot(directory) {
  const at = (name) => path.join(directory, name);
  for (const name of ['dev', 'proc', 'sys', 'tmp', 'run', 'app', 'root', 'var/lib', 'var/log', 'etc/xen']) {
    mkdirSync(at(name), { recursive: true });
  }
  link('/run', at('var/run'));
  link('/run/lock', at('var/lock'));
  link('busybox', at('usr/bin/sh'));
  const libraries = 'lib/aarch64-linux-gnu';
  for (const name of readdirSync(at(`${xenDirectory}/${libraries}`)).filter((entry) => entry.includes('.so'))) {
    link(`/${xenDirectory}/${libraries}/${name}`, at(`usr/${libraries}/${name}`));
  }
  writeFileSync(at('etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n');
  writeFileSync(at('etc/group'), 'root:x:0:\nnogroup:x:65534:\n');
  writeFileSync(at('etc/hosts'), '127.0.0.1 localhost\n');
  writeFileSync(at('etc/nsswitch.conf'), 'passwd: files\ngroup: files\nhosts: files\n');
  writeFileSync(at('etc/xen/xl.conf'), 'autoballoon="off"\n');
}

async function unpackKernel(file, scratch, tree) {
  const patterns = kernelModules.map((name) => `./usr/lib/modules/*/kernel/${name}.ko.xz`);
  await unpackDeb(file, scratch, ['./boot/vmlinuz-*', ...patterns]);
  const [version] = readdirSync(path.join(scratch, 'usr/lib/modules'));
  renameSync(path.join(scratch, `boot/vmlinuz-${version}`), path.join(tree, 'kernel'));
  const xz = needTool('xz', 'xz-utils');
  const modules = await inParallel(kernelModules, async (name) => {
    const packed = path.join(scratch, `usr/lib/modules/${version}/kernel/${name}.ko.xz`);
    return [path.basename(name), await needSuccess([xz, '--decompress', '--stdout', packed])];
  });
  return new Map(modules);
}

function makeInitramfs(busybox, modules) {
  const directories = ['bin', 'lib', 'dev', 'proc', 'sys', 'base', 'changes', 'root'];
  return writeCpio([
    ...directories.map((name) => ({ path: name, type: 'directory', mode: 0o755 })),
    { path: 'dev/console', type: 'device', mode: 0o600, device: [5, 1] },
    { path: 'bin/busybox', type: 'file', mode: 0o755, content: busybox },
    { path: 'bin/sh', type: 'link', mode: 0o777, content: 'busybox' },
    ...initramfsModules.map((name) => ({
      path: `lib/${name}.ko`,
      type: 'file',
      mode: 0o644,
      content: modules.get(name),
    })),
    { path: 'init', type: 'file', mode: 0o755, content: readFileSync(initramfsInit) },
  ]);
}

async function build(cache, archive, packages, tree) {
  const files = await archive.fetch(packages, `${packages.length} packages`);
  const fileOf = new Map(packages.map(({ name }, i) => [name, files[i]]));
  const unpackNode = await fetchNode(cache);
  await progress('building the base image', () =>
    cache.withScratch(async (scratch) => {
      const [root, rest] = ['root', 'rest'].map((name) => path.join(scratch, name));
      for (const directory of [root, rest]) mkdirSync(directory);
      // base-files first: it says which directories are links.
      for (const name of rootPackages) await unpackDeb(fileOf.get(name), root, packageParts[name]);
      await unpackDeb(fileOf.get(hypervisorPackage), rest, ['./boot/xen-*']);
      const xen = readdirSync(path.join(rest, 'boot')).find((name) => /^xen-[\d.]+-arm64$/.test(name));
      renameSync(path.join(rest, 'boot', xen), path.join(tree, 'xen'));
      const kernel = packages.find(({ name }) => /^linux-image-\d/.test(name)).name;
      const modules = await unpackKernel(fileOf.get(kernel), rest, tree);
      finishRoot(root);
      await unpackNode(path.join(root, 'usr/bin'));
      mkdirSync(path.join(root, moduleDirectory));
      for (const [name, content] of modules) writeFileSync(path.join(root, moduleDirectory, `${name}.ko`), content);
      const initramfs = makeInitramfs(readFileSync(path.join(root, 'usr/bin/busybox')), modules);
      writeFileSync(path.join(tree, 'initramfs'), initramfs);
      mkdirSync(path.join(root, 'boot'), { recursive: true });
      writeFileSync(path.join(root, 'boot/initramfs'), initramfs);
      writeFileSync(path.join(root, 'boot/kernel'), readFileSync(path.join(tree, 'kernel')));
      await makeExt4(root, path.join(tree, 'base.ext4'), 'base');
    }),
  );
}

/**
 * Xen, the kernel, the first root and the disk that dom0 and every domU share. Rebuilt only when the archive has
 * other packages, or the recipe changed.
 */
export async function baseImage(cache, archive) {
  return await archive.withFreshIndex(async () => {
    const packages = await choosePackages(archive);
    archive.warnUntested(packages);
    const digests = packages.map(({ sha256 }) => sha256);
    const parts = [packageParts, guestNode, kernelModules, readFileSync(initramfsInit, 'utf8')];
    const key = keyOf(recipeVersion, digests, ...parts);
    const tree = await cache.tree(`base-${key}`, (directory) => build(cache, archive, packages, directory));
    const at = (name) => path.join(tree, name);
    return {
      packages,
      xen: at('xen'),
      kernel: at('kernel'),
      initramfs: at('initramfs'),
      disk: at('base.ext4'),
    };
  });
}
