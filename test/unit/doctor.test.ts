import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { runDoctor } from '../../src/app/cli/doctor.ts';
import type { Finding } from '../../src/app/doctor/finding.ts';
import { type Machine, type Part, thisMachine } from '../../src/app/doctor/machine.ts';

interface Traits {
  readonly files?: Readonly<Record<string, string>>;
  readonly unreachable?: Readonly<Record<string, string>>;
  readonly broken?: Partial<Record<Part, string>>;
  readonly domid?: string;
  readonly xsm?: { readonly mode: string; readonly reason: string };
  readonly nodeVersion?: string;
  readonly directories?: Readonly<Record<string, { readonly uid: number; readonly mode: number }>>;
}

/** A machine where everything that is not named here works. */
function machine({ files = {}, unreachable = {}, broken = {}, ...traits }: Traits): Machine {
  const probe = (part: Part) => () => {
    if (broken[part] !== undefined) throw new Error(broken[part]);
  };
  const parts = [
    'memfd',
    'eventfd',
    'io_uring',
    'event channels',
    'grant mapping',
    'grant sharing',
    'xenstore',
  ] as const;
  return {
    platform: 'linux',
    nodeVersion: traits.nodeVersion ?? '20.19.2',
    uid: 0,
    read: (path) => files[path],
    reach: (path) => unreachable[path] ?? null,
    directory: (path) => (traits.directories ?? { '/': { uid: 0, mode: 0o755 } })[path],
    probe: Object.fromEntries(parts.map((part) => [part, probe(part)])) as Machine['probe'],
    ownDomid: () => {
      if (traits.domid === undefined) throw new Error('xenstored does not answer');
      return traits.domid;
    },
    securityModule: () => {
      if (traits.xsm === undefined) throw new Error('EPERM');
      return traits.xsm;
    },
  };
}

const version = { '/sys/hypervisor/version/major': '4\n', '/sys/hypervisor/version/minor': '20\n' };
const guestFiles = {
  '/sys/hypervisor/type': 'xen\n',
  ...version,
  '/sys/hypervisor/version/extra': '.1-pre\n',
  '/sys/module/xen_gntalloc/parameters/limit': '32768\n',
};
const dom0Files = { ...guestFiles, '/proc/xen/capabilities': 'control_d\n' };
const silo = { mode: 'silo', reason: 'xsm=silo on its command line' };

interface Report {
  readonly role: string;
  readonly ok: boolean;
  readonly findings: readonly Finding[];
}

async function examine(on: Machine, ...args: string[]): Promise<{ code: number; text: string }> {
  let text = '';
  const stdout = {
    write(part: string | Uint8Array): void {
      text += String(part);
    },
  };
  const env = { HOME: '/root', VMSG_API: '/nowhere/api.sock' };
  const code = await runDoctor(args, { stdout, stderr: { write: () => {} }, env, cwd: '/' }, on);
  return { code, text };
}

async function report(on: Machine, ...args: string[]): Promise<Report & { readonly code: number }> {
  const { code, text } = await examine(on, '--json', ...args);
  return { code, ...(JSON.parse(text) as Report) };
}

const missingOf = ({ findings }: Report): string[] =>
  findings.filter(({ state }) => state === 'missing').map(({ check }) => check);
const find = ({ findings }: Report, check: string): Finding => {
  const found = findings.find((finding) => finding.check === check);
  assert.ok(found !== undefined, check);
  return found;
};

describe('doctor', () => {
  it('finds a service on a machine without Xen in order', async () => {
    const { code, role, ok, ...rest } = await report(machine({}));
    assert.deepEqual([code, role, ok], [0, 'service', true]);
    const whole = { code, role, ok, ...rest };
    assert.equal(find(whole, 'xen').state, 'note');
    assert.equal(find(whole, 'api').state, 'note');
    assert.match(find(whole, 'api').text, /no service answers there/);
  });

  it('says how disks reach their images', async () => {
    assert.equal(find(await report(machine({})), 'disks').text, 'Disks use io_uring.');
    const without = await report(machine({ broken: { io_uring: 'io_uring_setup: EPERM' } }));
    assert.deepEqual([without.ok, find(without, 'disks').state], [true, 'note']);
    assert.match(find(without, 'disks').text, /thread pool, which is slower than io_uring: io_uring_setup: EPERM/);
    assert.match(find(without, 'disks').fix ?? '', /kernel\.io_uring_disabled=0/);
    const folder = mkdtempSync(join(tmpdir(), 'vmsg-doctor-'));
    const config = join(folder, 'vmsg.json');
    const withConfig = (io: string, broken: Traits['broken'] = {}) => {
      writeFileSync(config, JSON.stringify({ disks: { io } }));
      return report(machine({ broken }), '--config', config);
    };
    assert.equal(find(await withConfig('threads'), 'disks').state, 'fine');
    assert.deepEqual(missingOf(await withConfig('io_uring', { io_uring: 'ENOSYS' })).includes('disks'), true);
    rmSync(folder, { recursive: true });
  });

  it('says what a control domain has', async () => {
    const found = await report(machine({ files: dom0Files, domid: '0', xsm: silo }));
    assert.deepEqual([found.code, found.role, missingOf(found)], [0, 'xen-service', []]);
    assert.equal(find(found, 'xen').text, 'This is the control domain of Xen 4.20.1-pre.');
    assert.match(find(found, 'xenstore').text, /domain 0/);
    assert.match(find(found, 'xsm').text, /keeps domUs apart \(xsm=silo on its command line\)/);
    assert.match(find(found, 'xsm').fix ?? '', /xsm=dummy/);
  });

  it('says what a control domain lacks, and how to get it', async () => {
    const unreachable = { '/dev/xen/gntdev': 'ENOENT', '/dev/xen/evtchn': 'EACCES', '/dev/xen/gntalloc': 'ENOENT' };
    const found = await report(machine({ files: dom0Files, unreachable }));
    assert.deepEqual([found.code, found.ok], [1, false]);
    assert.deepEqual(missingOf(found), ['/dev/xen/evtchn', '/dev/xen/gntdev', 'xenstore']);
    assert.match(find(found, '/dev/xen/gntdev').fix ?? '', /modprobe xen-gntdev/);
    assert.match(find(found, '/dev/xen/evtchn').fix ?? '', /Run as root/);
    assert.match(find(found, 'xenstore').fix ?? '', /systemctl start xenstored/);
    assert.equal(find(found, '/dev/xen/gntalloc').state, 'note', 'a service does without it');
    assert.match(find(found, 'xsm').text, /not known/);
  });

  it('names the libraries where a device is there and cannot be used', async () => {
    const broken = { 'grant mapping': 'libxengnttab.so.1 is not installed' };
    const found = await report(machine({ files: dom0Files, domid: '0', xsm: silo, broken }));
    assert.deepEqual(missingOf(found), ['/dev/xen/gntdev']);
    assert.match(find(found, '/dev/xen/gntdev').text, /libxengnttab\.so\.1/);
    assert.match(find(found, '/dev/xen/gntdev').fix ?? '', /libxengnttab1/);
  });

  it('counts the pages that a guest may grant', async () => {
    const limit = '/sys/module/xen_gntalloc/parameters/limit';
    const unreachable = { '/dev/xen/gntdev': 'ENOENT' };
    const good = await report(machine({ files: guestFiles, domid: '3', unreachable }));
    assert.deepEqual([good.code, good.role], [0, 'xen-guest']);
    const poor = await report(machine({ files: { ...guestFiles, [limit]: '1024\n' }, domid: '3', unreachable }));
    assert.deepEqual([poor.code, missingOf(poor)], [1, ['gntalloc limit']]);
    assert.match(find(poor, 'gntalloc limit').text, /^Only 1024 pages can be granted/);
    assert.match(find(poor, 'gntalloc limit').fix ?? '', /options xen-gntalloc limit=32768/);
    const { [limit]: _, ...unread } = guestFiles;
    assert.equal(find(await report(machine({ files: unread, domid: '3' })), 'gntalloc limit').state, 'note');
    const dom0 = (value: string) => report(machine({ files: { ...dom0Files, [limit]: value }, domid: '0', xsm: silo }));
    assert.equal(find(await dom0('4101\n'), 'gntalloc limit').state, 'fine');
    const small = await dom0('4100\n');
    assert.deepEqual([small.code, find(small, 'gntalloc limit').state], [0, 'note']);
    assert.match(find(small, 'gntalloc limit').text, /each device on the shadow path needs 4101\.$/);
    assert.ok(!good.findings.some(({ check }) => check === 'stateDir' || check === 'api'), 'a guest has none of it');
  });

  it('judges by the role that is asked for', async () => {
    const inGuest = await report(machine({ files: guestFiles, domid: '3' }), '--role', 'xen-service');
    assert.deepEqual(missingOf(inGuest), ['xen']);
    assert.match(find(inGuest, 'xen').fix ?? '', /dom0/);
    assert.deepEqual(missingOf(await report(machine({}), '--role', 'xen-guest')), ['xen']);
    await assert.rejects(examine(machine({}), '--role', 'king'), /--role takes service, xen-service, xen-guest/);
  });

  it('looks at Node.js and the directories', async () => {
    const directories = {
      '/': { uid: 0, mode: 0o755 },
      '/var/lib/vmsg': { uid: 1000, mode: 0o700 },
      '/run': { uid: 0, mode: 0o755 },
    };
    const found = await report(machine({ nodeVersion: '18.20.1', directories }));
    assert.ok(missingOf(found).includes('node'));
    if (process.getuid?.() === 0) {
      assert.match(find(found, 'stateDir').text, /\/var\/lib\/vmsg belongs to the user 1000/);
      assert.match(find(found, 'runtimeDir').text, /\/run\/vmsg is made when the service first starts/);
    }
  });

  it('prints sentences, with what to do below', async () => {
    const { code, text } = await examine(machine({ files: dom0Files, unreachable: { '/dev/xen/gntdev': 'ENOENT' } }));
    assert.equal(code, 1);
    assert.match(text, /^FAIL {2}\/dev\/xen\/gntdev is not there\.\n {6}modprobe xen-gntdev/m);
    assert.match(text, /\nThis machine cannot be a service for Xen domains yet\.\n$/);
  });

  it('works on this machine, whatever it has', async () => {
    const { code, findings } = await report(thisMachine());
    assert.ok(code === 0 || code === 1);
    for (const check of ['node', 'linux', 'memfd', 'eventfd']) {
      assert.equal(findings.find((finding) => finding.check === check)?.state, 'fine', check);
    }
  });
});
