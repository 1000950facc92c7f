/** The vhost-user programs of others that tests talk to; deploy/backends says where they come from. */
export type BackendName = 'qemu-storage-daemon' | 'virtiofsd' | 'passt' | 'vhost-device-vsock';

export interface BackendProgram {
  /** Starts the program; arguments follow. */
  readonly command: readonly string[];
  /** '' when it does not tell. */
  readonly version: string;
}

/** What the test runner has made ready. @param text of VMSG_BACKEND_PROGRAMS */
export function backendProgram(name: BackendName, text = process.env.VMSG_BACKEND_PROGRAMS): BackendProgram {
  if (text === undefined) throw new Error('VMSG_BACKEND_PROGRAMS is not set: `npm test -- backends` does that');
  const found = (JSON.parse(text) as Partial<Record<BackendName, BackendProgram>>)[name];
  if (found === undefined) throw new Error(`VMSG_BACKEND_PROGRAMS does not have ${name}`);
  return found;
}

/** `programs` of a config file: these in place of what is installed. */
export function backendCommands(): Readonly<Record<string, { readonly command: readonly string[] }>> {
  const names: readonly BackendName[] = ['qemu-storage-daemon', 'virtiofsd', 'passt', 'vhost-device-vsock'];
  return Object.fromEntries(names.map((name) => [name, { command: backendProgram(name).command }]));
}

/** A disk image, raw unless it has another format, as vhost-user-blk; the program stays when a connection ends. */
export function storageDaemonArguments(options: {
  readonly socket: string;
  readonly file: string;
  readonly format?: 'raw' | 'qcow2';
  readonly queues: number;
  readonly writable: boolean;
}): string[] {
  const { socket, file, format = 'raw', queues, writable } = options;
  const access = writable ? ['writable=on'] : [];
  const readOnly = writable ? [] : ['read-only=on'];
  const image =
    format === 'raw'
      ? ['driver=file', 'node-name=disk', `filename=${comma(file)}`]
      : [`driver=${format}`, 'node-name=disk', 'file.driver=file', `file.filename=${comma(file)}`];
  const where = ['addr.type=unix', `addr.path=${comma(socket)}`];
  return [
    '--blockdev',
    [...image, ...readOnly].join(','),
    '--export',
    ['type=vhost-user-blk', 'id=export', 'node-name=disk', ...where, `num-queues=${queues}`, ...access].join(','),
  ];
}

/** In QEMU's lists of options a comma in a value is doubled. */
function comma(value: string): string {
  return value.replaceAll(',', ',,');
}

/** A directory as vhost-user-fs, without what would need a privilege; the program ends with its one connection. */
export function virtiofsdArguments(options: {
  readonly socket: string;
  readonly directory: string;
  readonly tag: string;
}): string[] {
  const { socket, directory, tag } = options;
  const unprivileged = ['--sandbox=none', '--seccomp=none', '--inode-file-handles=never', '--rlimit-nofile=0'];
  return [`--socket-path=${socket}`, `--shared-dir=${directory}`, `--tag=${tag}`, ...unprivileged];
}

/** What passt tells a guest, and its own MAC address; with it nothing depends on the host's network. */
export const passtNetwork = { guest: '10.219.0.2', prefixLength: 24, gateway: '10.219.0.1', mac: '9a:55:9a:55:9a:55' };

/** User-mode networking as vhost-user-net; the program stays when a connection ends. */
export function passtArguments({ socket }: { readonly socket: string }): string[] {
  const { guest, prefixLength, gateway, mac } = passtNetwork;
  const network = ['--ipv4-only', '--address', guest, '--netmask', `${prefixLength}`, '--gateway', gateway];
  const rest = ['--mac-addr', mac, '--dns', 'none', '--repair-path', 'none'];
  return ['--foreground', '--quiet', '--vhost-user', '--socket', socket, ...network, ...rest];
}

/** vhost-user-vsock; programs of the host connect to `hostSocket`. It stays when a connection ends. */
export function vsockArguments(options: {
  readonly socket: string;
  readonly hostSocket: string;
  readonly guestCid: number;
}): string[] {
  const { socket, hostSocket, guestCid } = options;
  return ['--socket', socket, '--uds-path', hostSocket, '--guest-cid', `${guestCid}`];
}
