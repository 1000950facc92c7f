import { limits } from '../../kit/limits.ts';
import { grantPageBytes } from '../../ports/hypervisor.ts';
import { directoryPages } from '../../virtio-msg/grant-directory.ts';
import { gntallocLimitFile } from '../../xen/gntshr.ts';
import { type Finding, failureOf, fine, missing, note, type Role } from './finding.ts';
import type { Machine, Part } from './machine.ts';

/** Whether this is a domain of Xen, and which kind. */
export function xenKind(machine: Machine): 'none' | 'guest' | 'control' {
  if (machine.read('/sys/hypervisor/type')?.trim() !== 'xen') return 'none';
  return machine.read('/proc/xen/capabilities')?.includes('control_d') ? 'control' : 'guest';
}

interface Device {
  readonly node: string;
  readonly part: Part | null;
  readonly roles: readonly Role[];
  /** What other roles use it for. */
  readonly else: string;
}

const devices: readonly Device[] = [
  { node: 'evtchn', part: 'event channels', roles: ['xen-service', 'xen-guest'], else: 'Xen buses need it.' },
  { node: 'gntdev', part: 'grant mapping', roles: ['xen-service'], else: 'Serving devices to other domains needs it.' },
  { node: 'gntalloc', part: 'grant sharing', roles: ['xen-guest'], else: 'Copying between domUs (shadow) needs it.' },
  { node: 'privcmd', part: null, roles: [], else: 'Only the toolstack needs it, and the question for the XSM mode.' },
];

/** What a role needs of Xen. */
export function xenFindings(machine: Machine, role: Role): Finding[] {
  const kind = xenKind(machine);
  if (kind === 'none') {
    const fix = 'Boot Xen with this system as its control domain (Debian: xen-system-arm64), or as a domU.';
    if (role === 'service') return [note('xen', 'This machine does not run under Xen; loopback buses need none.')];
    return [missing('xen', 'This machine does not run under Xen.', fix)];
  }
  return [
    kindFinding(machine, kind, role),
    ...devices.flatMap((device) => deviceFindings(machine, device, role)),
    ...storeFindings(machine, role),
    ...(role === 'service' ? [] : [allocFinding(machine, role)]),
    ...(kind === 'control' ? [securityFinding(machine)] : []),
  ];
}

function kindFinding(machine: Machine, kind: 'guest' | 'control', role: Role): Finding {
  const part = (name: string) => machine.read(`/sys/hypervisor/version/${name}`)?.trim();
  const version = `${part('major') ?? '?'}.${part('minor') ?? '?'}${part('extra') ?? ''}`;
  const what = kind === 'control' ? 'the control domain' : 'a guest';
  if (role === 'xen-service' && kind === 'guest') {
    const fix = 'Run the service in dom0: only there it may write to the xenstore directories of others.';
    return missing('xen', `This is a guest of Xen ${version}, not the control domain.`, fix);
  }
  return fine('xen', `This is ${what} of Xen ${version}.`);
}

function deviceFindings(machine: Machine, { node, part, roles, else: purpose }: Device, role: Role): Finding[] {
  const path = `/dev/xen/${node}`;
  const errno = machine.reach(path);
  const needed = roles.includes(role);
  const module = `xen-${node}`;
  if (errno !== null) {
    const isThere = errno !== 'ENOENT';
    const text = isThere ? `${path} cannot be opened (${errno}).` : `${path} is not there.`;
    const fix = isThere
      ? `Run as root, or give this user read and write access to ${path}.`
      : `modprobe ${module}; for every boot: echo ${module} > /etc/modules-load.d/${module}.conf`;
    return [needed ? missing(path, text, fix) : note(path, `${text} ${purpose}`, fix)];
  }
  const failure = part === null ? null : failureOf(machine.probe[part]);
  if (failure === null) return [fine(path, `${path} works.`)];
  return [needed ? missing(path, `${path}: ${failure}`, libraryFix) : note(path, `${path}: ${failure}`, libraryFix)];
}

const libraryFix = 'Install the Xen libraries (Debian: libxengnttab1 libxenevtchn1 libxenstore4).';

function storeFindings(machine: Machine, role: Role): Finding[] {
  const needed = role !== 'service';
  let domid: string | undefined;
  const failure = failureOf(() => {
    domid = machine.ownDomid();
  });
  if (failure === null && domid !== undefined) return [fine('xenstore', `xenstored answers; this is domain ${domid}.`)];
  const text = failure ?? 'xenstored answers, but does not know this domain.';
  const fix =
    role === 'xen-guest'
      ? 'Load xenfs and mount it on /proc/xen, or see whether /dev/xen/xenbus is there; install libxenstore4.'
      : 'Start xenstored (Debian: systemctl start xenstored, or service xen start), and install libxenstore4.';
  return [needed ? missing('xenstore', text, fix) : note('xenstore', text, fix)];
}

const withDirectory = (bytes: number): number => bytes / grantPageBytes + directoryPages(bytes / grantPageBytes);

/** Pages that a role grants with default settings, and for what. */
const granted = {
  'xen-guest': {
    pages: withDirectory(limits.guestMemoryDefaultBytes) + limits.xenRingMaxPages * 2,
    purpose: 'a pool of the default size with its rings',
  },
  'xen-service': { pages: withDirectory(limits.shadowMemoryBytes), purpose: 'each device on the shadow path' },
} as const;

function allocFinding(machine: Machine, role: keyof typeof granted): Finding {
  const check = 'gntalloc limit';
  const { pages, purpose } = granted[role];
  const limit = Number(machine.read(gntallocLimitFile)?.trim() || Number.NaN);
  if (Number.isNaN(limit)) {
    return note(check, `${gntallocLimitFile} cannot be read, so it is not known how many pages can be granted.`);
  }
  if (limit >= pages) return fine(check, `${limit} pages can be granted; ${purpose} needs ${pages}.`);
  const later = 'echo options xen-gntalloc limit=32768 > /etc/modprobe.d/vmsg.conf';
  const fix = `echo 32768 > ${gntallocLimitFile}; for every boot: ${later}`;
  const text = `Only ${limit} pages can be granted; ${purpose} needs ${pages}.`;
  return role === 'xen-guest' ? missing(check, text, fix) : note(check, text, fix);
}

function securityFinding(machine: Machine): Finding {
  const check = 'xsm';
  let verdict: { readonly mode: string; readonly reason: string } = { mode: 'unknown', reason: '' };
  const failure = failureOf(() => {
    verdict = machine.securityModule();
  });
  if (failure !== null) return note(check, `It is not known whether domains may share memory: ${failure}`);
  const { mode, reason } = verdict;
  if (mode === 'silo') {
    const fix = 'For memory from domU to domU: xsm=dummy on the command line of Xen.';
    const text = `Xen keeps domUs apart (${reason}): what one serves to another is copied through this domain.`;
    return note(check, text, fix);
  }
  if (mode === 'unknown') {
    return note(check, `${reason}: the service finds out when one domU first serves another (Debian: silo).`);
  }
  return fine(check, `Xen's security module is ${mode} (${reason}).`);
}
