import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { BackendSpec } from '../../src/bridge/commands.ts';
import type { LaneProgramSpec } from '../../src/bridge/lane/protocol.ts';
import { laneProgramSpec, type ProgramSources } from '../../src/bridge/service/program-specs.ts';
import { isCode } from '../support/guest-fixture.ts';

const sources = (definitions: ProgramSources['definitions'] = {}): ProgramSources => ({ definitions, directory: '/p' });
type ProgramBackend = Parameters<typeof laneProgramSpec>[1];

/** The command line with marks where the socket goes. */
const commandOf = ({ command }: LaneProgramSpec): string[] =>
  command.map((argument) => argument.map((piece) => (typeof piece === 'string' ? piece : `<${piece.put}>`)).join(''));
const lineOf = (spec: ProgramBackend, definitions = {}): string[] =>
  commandOf(laneProgramSpec('b1', spec, sources(definitions)));

describe('the command line of', () => {
  test('qemu-storage-daemon: no value of a client becomes an option', () => {
    const spec = { type: 'qemu-storage-daemon', path: '/a,node-name=x{socket}', format: 'qcow2', queues: 3 } as const;
    assert.deepEqual(lineOf(spec), [
      'qemu-storage-daemon',
      '--blockdev',
      'driver=qcow2,node-name=disk,file.driver=file,file.filename=/a,,node-name=x{socket},discard=unmap',
      '--export',
      'type=vhost-user-blk,id=export,node-name=disk,num-queues=3,writable=on,addr.type=unix,addr.path=<qemu-socket>',
    ]);
    const [, , blockdev = '', , exported = ''] = lineOf({
      type: 'qemu-storage-daemon',
      path: '/dev/vg/lv',
      readOnly: true,
    });
    assert.match(blockdev, /^driver=raw,.*file\.driver=host_device,.*,read-only=on$/);
    assert.match(exported, /writable=off/);
    assert.match(lineOf({ type: 'qemu-storage-daemon', path: '/dev/shm/a' })[2]!, /file\.driver=file,/);
  });

  test('virtiofsd', () => {
    assert.deepEqual(lineOf({ type: 'virtiofsd', directory: '/d', tag: 't', readOnly: true }), [
      'virtiofsd',
      '--socket-path=<socket>',
      '--shared-dir=/d',
      '--tag=t',
      '--sandbox=namespace',
      '--inode-file-handles=never',
      '--rlimit-nofile=0',
      '--readonly',
    ]);
  });

  test('passt: the loopback of the host is closed, and ports are of the loopback, unless that is wanted', () => {
    const before = [
      'passt',
      '--foreground',
      '--quiet',
      '--vhost-user',
      '--repair-path',
      'none',
      '--socket',
      '<socket>',
    ];
    assert.deepEqual(lineOf({ type: 'passt' }), [...before, '--no-map-gw']);
    const ports = [
      { hostPort: 80 },
      { protocol: 'udp', hostAddress: '0.0.0.0', hostPort: 53, guestPort: 5353 },
    ] as const;
    const address = { address: '10.0.0.2', prefixLength: 24, gateway: '10.0.0.1' };
    const spec = { type: 'passt', ...address, dns: [], ipv4Only: true, hostLoopback: true, ports } as const;
    assert.deepEqual(lineOf(spec), [
      ...before,
      ...['--address', '10.0.0.2', '--netmask', '24', '--gateway', '10.0.0.1', '--dns', 'none', '--ipv4-only'],
      ...['--tcp-ports', '127.0.0.1/80:80', '--udp-ports', '0.0.0.0/53:5353'],
    ]);
  });

  test('vhost-device-vsock, which the config file finds elsewhere', () => {
    const spec = { type: 'vhost-device-vsock', guestCid: 7, hostSocket: '/h' } as const;
    const definitions = { 'vhost-device-vsock': { command: ['/lib/ld.so', '/opt/vsock'], openFiles: 99 } };
    assert.deepEqual(lineOf(spec, definitions), [
      '/lib/ld.so',
      '/opt/vsock',
      ...['--socket', '<socket>', '--uds-path', '/h', '--guest-cid', '7'],
    ]);
    const { device, openFiles, package: debian } = laneProgramSpec('b1', spec, sources(definitions));
    assert.deepEqual([device, openFiles, debian], ['vsock', 99, null]);
    assert.equal(laneProgramSpec('b1', spec, sources()).package, 'vhost-device-vsock');
  });

  test('a program of the config file', () => {
    const definitions = {
      mine: { command: ['mine', '-a={socket},{qemu-socket}', '{other}'], device: 'i2c', restart: 'never' } as const,
    };
    const spec = laneProgramSpec('b1', { type: 'program', program: 'mine' }, sources(definitions));
    assert.deepEqual(commandOf(spec), ['mine', '-a=<socket>,<qemu-socket>', '{other}']);
    assert.deepEqual([spec.device, spec.restart, spec.program, spec.backend], ['i2c', 'never', 'mine', 'b1']);
  });
});

test('a program that the config file does not name is none', () => {
  const unknown = isCode('backend-unusable', /names no program "(mine|constructor)"/);
  const spec = (program: string) => ({ type: 'program', program }) satisfies BackendSpec;
  assert.throws(() => laneProgramSpec('b1', spec('mine'), sources()), unknown);
  assert.throws(() => laneProgramSpec('b1', spec('mine'), undefined), unknown);
  assert.throws(() => laneProgramSpec('b1', spec('constructor'), sources()), unknown);
  // The name of a preset is no way around its arguments.
  assert.throws(
    () => laneProgramSpec('b1', spec('passt'), sources({ passt: { command: ['/x'] } })),
    isCode('backend-unusable', /"passt"/),
  );
});

test('the file of a disk is locked, as it is used', () => {
  const lockOf = (spec: ProgramBackend) => laneProgramSpec('b1', spec, sources()).lock;
  assert.deepEqual(lockOf({ type: 'qemu-storage-daemon', path: '/i' }), { path: '/i', exclusive: true });
  assert.deepEqual(lockOf({ type: 'qemu-storage-daemon', path: '/i', readOnly: true }), {
    path: '/i',
    exclusive: false,
  });
  assert.equal(lockOf({ type: 'passt' }), undefined);
});

test('a network has an address of its own, always the same', () => {
  const macOf = (id: string, mac?: string) =>
    laneProgramSpec(id, { type: 'passt', ...(mac === undefined ? {} : { mac }) }, sources()).mac;
  assert.match(macOf('a') ?? '', /^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/);
  assert.equal(macOf('a'), macOf('a'));
  assert.notEqual(macOf('a'), macOf('b'));
  assert.equal(macOf('a', '02:00:00:00:00:01'), '02:00:00:00:00:01');
});
