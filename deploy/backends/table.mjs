import { isTested } from '../qemu/versions.mjs';

/**
 * The vhost-user backends that tests talk to.
 *
 * @typedef {object} Row
 * @property {string} package of Debian, that has the program
 * @property {string} suite that the package is taken from
 * @property {string} file the program inside the package
 * @property {string[]} without dependencies that the program does not need for what tests do with it
 * @property {string} oldest version of the host's program that is used; an older one is passed over
 * @property {[string, string]} tested from the first version to below the second one
 * @property {string} probe option that makes the program say which version it is
 * @property {RegExp} version finds it in the output, in the first group; where that is left out, the version is unknown
 * @property {boolean} isolates the program makes itself a user namespace and cannot be told not to
 */

/** @type {Readonly<Record<string, Row>>} */
export const backendTable = {
  'qemu-storage-daemon': {
    package: 'qemu-utils',
    suite: 'trixie',
    file: 'usr/bin/qemu-storage-daemon',
    without: [],
    oldest: '7.2',
    tested: ['7.2', '10.1'],
    probe: '--version',
    version: /^qemu-storage-daemon version (\d[\d.]*)/m,
    isolates: false,
  },
  virtiofsd: {
    package: 'virtiofsd',
    suite: 'forky',
    file: 'usr/libexec/virtiofsd',
    // Only sandboxes of users other than root need it.
    without: ['uidmap'],
    // Older ones refuse memory that is a device of Xen, because its size cannot be sought.
    oldest: '1.14',
    tested: ['1.14', '1.15'],
    probe: '--version',
    version: /^virtiofsd (\d[\d.]*)/m,
    isolates: false,
  },
  passt: {
    package: 'passt',
    suite: 'trixie',
    file: 'usr/bin/passt',
    without: [],
    oldest: '0.0~git20250503',
    tested: ['0.0~git20250503', '0.0~git20250504'],
    // It prints its version and ends without flushing, so that a pipe gets nothing; of the help it gets the beginning.
    probe: '--help',
    version: /^ +--vhost-user\b()/m,
    isolates: true,
  },
  'vhost-device-vsock': {
    package: 'vhost-device-vsock',
    suite: 'forky',
    file: 'usr/bin/vhost-device-vsock',
    without: [],
    oldest: '0.3',
    tested: ['0.3', '0.4'],
    probe: '--version',
    version: /^vhost-device-vsock (\d[\d.]*)/m,
    isolates: false,
  },
};

/** The row of a program. @returns {Row} */
export function rowOf(name) {
  if (!Object.hasOwn(backendTable, name)) throw new Error(`there is no backend ${name}`);
  return backendTable[name];
}

/**
 * What a program's output on `probe` says.
 * @param {Row} row
 * @returns {string | undefined} the version, '' for one that can do vhost-user but does not tell
 */
export function programVersion({ version }, text) {
  return version.exec(text)?.[1];
}

/** Whether everything was tested with a version of the program, or of the package, whose epoch does not count. */
export function isTestedVersion({ tested }, version) {
  return isTested(version.replace(/^\d+:/, ''), tested);
}
