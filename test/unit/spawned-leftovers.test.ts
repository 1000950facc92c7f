import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { endLeftovers } from '../../src/bridge/backend/vhost-user/spawn/leftovers.ts';
import {
  bootId,
  type Killed,
  killNow,
  membersOf,
  pidNamespace,
  processRow,
} from '../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { directoryVariable, type ProgramRecord } from '../../src/bridge/backend/vhost-user/spawn/record.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import { isCode } from '../support/guest-fixture.ts';
import { eventually } from '../support/service-process.ts';

let directory: string;
let start: string;
let warnings: object[];
const children: ChildProcess[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vmsg-left-'));
  start = join(directory, 'disk-abc123');
  mkdirSync(start);
  warnings = [];
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode === null && child.signalCode === null) {
      const exited = once(child, 'exit');
      killNow(-child.pid!, 'SIGKILL');
      await exited;
    }
  }
  rmSync(directory, { recursive: true });
});

/** A session of processes that nobody looks after. @returns pid of its leader */
async function session(script: string, members: number): Promise<number> {
  const env = { PATH: process.env.PATH ?? '', [directoryVariable]: start };
  const child = spawn('/bin/sh', ['-c', script], { detached: true, stdio: 'ignore', env });
  children.push(child);
  const pid = child.pid!;
  await eventually(async () => (membersOf(pid).length === members ? true : undefined), 'its processes run');
  return pid;
}

function record(pid: number, changes: Partial<ProgramRecord> = {}): void {
  const content: ProgramRecord = {
    backend: 'disk',
    program: 'fake',
    pid,
    startTime: processRow(pid)?.startTime ?? '1',
    bootId: bootId(),
    pidNamespace: pidNamespace(),
    ...changes,
  };
  writeFileSync(join(start, 'leader.json'), JSON.stringify(content));
}

const clean = (kill: (pid: number) => Killed = (pid) => killNow(pid, 'SIGKILL'), clock: Clock = systemClock) =>
  endLeftovers(directory, { clock, kill, log: { warn: (data) => warnings.push(data) } });

const family = 'sleep 1000 & trap "" TERM; sleep 1000';

test('processes of an earlier service are killed before the call returns, and reported', async () => {
  const pid = await session(family, 3);
  record(pid);
  await clean();
  assert.deepEqual(membersOf(pid), []);
  assert.deepEqual(readdirSync(directory), []);
  const [{ backend, pids } = { backend: '', pids: [] }] = warnings as { backend: string; pids: number[] }[];
  assert.deepEqual([backend, pids.length, warnings.length], ['disk', 3, 1]);
});

test('children are killed when the first process has gone', async () => {
  const pid = await session(family, 3);
  record(pid);
  process.kill(pid, 'SIGKILL');
  await eventually(async () => (processRow(pid) === undefined ? true : undefined), 'the first process has gone');
  assert.equal(membersOf(pid).length, 2);
  await clean();
  assert.deepEqual(membersOf(pid), []);
});

test('a number that others have now is let alone', async () => {
  const pid = await session(family, 3);
  record(pid, { startTime: '1' });
  await clean();
  assert.equal(membersOf(pid).length, 3);
  assert.deepEqual(readdirSync(directory), []);
});

test('a session that was started elsewhere is let alone, also when its first process has gone', async () => {
  const pid = await session(`export ${directoryVariable}=/elsewhere; sh -c "${family}" & exec sleep 1000`, 4);
  record(pid);
  const inner = membersOf(pid).filter((member) => member.pid !== pid);
  process.kill(pid, 'SIGKILL');
  await eventually(async () => (processRow(pid) === undefined ? true : undefined), 'the first process has gone');
  await clean();
  assert.equal(membersOf(pid).length, inner.length);
  for (const member of inner) killNow(member.pid, 'SIGKILL');
});

test('another start of the machine, or another container, has left nothing', async () => {
  const pid = await session(family, 3);
  for (const other of [{ bootId: 'x' }, { pidNamespace: 'pid:[1]' }]) {
    mkdirSync(start, { recursive: true });
    record(pid, other);
    await clean();
    assert.equal(membersOf(pid).length, 3);
  }
  mkdirSync(start);
  writeFileSync(join(start, 'leader.json'), '{"pid":');
  await clean();
  assert.deepEqual([readdirSync(directory), warnings], [[], []]);
});

test('what may not be killed, or does not end, stops the service, and is named', async () => {
  const pid = await session('exec sleep 1000', 1);
  record(pid);
  const named = new RegExp(`process ${pid} of the program fake, which an earlier service left, must not be killed`);
  await assert.rejects(
    clean(() => 'refused'),
    isCode('unavailable', named),
  );
  const hurried: Clock = {
    nowMs: () => systemClock.nowMs() * 50,
    after: (ms, done) => systemClock.after(ms / 50, done),
  };
  await assert.rejects(
    clean(() => 'killed', hurried),
    isCode('unavailable', /was killed and does not end/),
  );
  assert.deepEqual(readdirSync(directory), ['disk-abc123']);
});
