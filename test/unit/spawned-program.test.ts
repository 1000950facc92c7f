import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { membersOf, parseStat } from '../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { limits } from '../../src/kit/limits.ts';
import { Scope } from '../../src/kit/scope.ts';
import { listener, withPrograms } from '../support/fake-program.ts';
import { isCode } from '../support/guest-fixture.ts';
import { eventually } from '../support/service-process.ts';

const lineWith = (lines: readonly string[], text: string) =>
  eventually(async () => lines.find((line) => line.replace(/ +/g, ' ').includes(text)), `a line with ${text}`);

const isGone = (leader: number, what: string) =>
  eventually(async () => (membersOf(leader).length === 0 ? true : undefined), what);

describe('a program that is started', () => {
  test('is connected to when it listens, in a session of its own, with bounds and little environment', () =>
    withPrograms(async (bench, scope) => {
      // What shells add for themselves.
      const tell = `delete process.env.PWD; delete process.env.SHLVL; delete process.env._;
        console.log(JSON.stringify([Object.keys(process.env).sort(), process.cwd()]));
        console.log(require('fs').readFileSync('/proc/self/limits', 'utf8'))`;
      const endpoint = bench.endpoint(listener(tell), { openFiles: 64, memoryBytes: 3 * 1024 ** 3 });
      const fd = await endpoint.connect(scope);
      assert.ok(!fd.closed);
      const [leader = 0] = bench.leaders;
      assert.deepEqual(parseStat(readFileSync(`/proc/${leader}/stat`, 'latin1'))?.session, leader);
      await lineWith(bench.lines, 'Max core file size 0 0');
      await lineWith(bench.lines, 'Max open files 64 64');
      await lineWith(bench.lines, `Max data size ${3 * 1024 ** 3}`);
      assert.ok(bench.lines.includes('info [["LANG","PATH","VMSG_PROGRAM_DIRECTORY"],"/"]'), bench.lines.join('\n'));
      assert.match(readFileSync(`/proc/${leader}/status`, 'utf8'), /NoNewPrivs:\t1/);
    }));

  test('ends with its connection, with all its children, and leaves nothing', () =>
    withPrograms(async (bench) => {
      const children = `const { spawn } = require('child_process');
        spawn('sleep', ['1000']);
        spawn('sh', ['-c', 'set -m; sleep 1000 & trap "" TERM; while :; do sleep 1; done'])`;
      const endpoint = bench.endpoint(listener(children));
      const scope = new Scope();
      await endpoint.connect(scope);
      const [leader = 0] = bench.leaders;
      // Itself, its guard, the two children, and two of the shell.
      await eventually(async () => (membersOf(leader).length >= 6 ? true : undefined), 'its children run');
      scope.close();
      await endpoint.surelyGone();
      assert.deepEqual(membersOf(leader), []);
      assert.deepEqual(readdirSync(bench.directory), []);
      assert.ok(bench.lines.includes('info was ended by SIGTERM'), bench.lines.join('\n'));
    }));

  test('is killed when it ignores SIGTERM', () =>
    withPrograms(async (bench) => {
      const endpoint = bench.endpoint(listener('process.on("SIGTERM", () => console.log("no"))'));
      const scope = new Scope();
      await endpoint.connect(scope);
      bench.hurry(20);
      scope.close();
      await endpoint.surelyGone();
      assert.ok(bench.lines.includes('warn does not end by itself and is killed'), bench.lines.join('\n'));
      assert.ok(bench.lines.includes('info was ended by SIGKILL'), bench.lines.join('\n'));
    }));

  test('that ends with its connection is started anew for the next one', () =>
    withPrograms(async (bench) => {
      const command = listener(
        '',
        'c => { c.on("close", () => process.exit(0)); c.on("error", () => {}); c.resume() }',
      );
      const endpoint = bench.endpoint(command);
      const seen = new Set<number>();
      for (let i = 0; i < 3; i++) {
        const scope = new Scope();
        await endpoint.connect(scope);
        seen.add(bench.leaders[0] ?? 0);
        scope.close();
      }
      assert.equal(seen.size, 3);
    }));

  test('is not started before the earlier one is gone, also by another device of the same backend', () =>
    withPrograms(async (bench, scope) => {
      const stubborn = bench.endpoint(listener('process.on("SIGTERM", () => {})'));
      const first = new Scope();
      await stubborn.connect(first);
      const [earlier = 0] = bench.leaders;
      bench.hurry(4);
      first.close();
      bench.hurry(1);
      assert.ok(membersOf(earlier).length > 0);
      const next = bench.endpoint(listener());
      await next.connect(scope);
      assert.deepEqual(membersOf(earlier), []);
    }));

  test('with restart never is started once', () =>
    withPrograms(async (bench, scope) => {
      const endpoint = bench.endpoint(listener(), { restart: 'never' });
      const first = new Scope();
      await endpoint.connect(first);
      first.close();
      await assert.rejects(endpoint.connect(scope), isCode('backend-unusable', /restart: never/));
    }));
});

describe('a program that cannot serve', () => {
  test('because it ends at its start: its status and its last lines are the reason', () =>
    withPrograms(async (bench, scope) => {
      const script = 'i=0; while [ $i -lt 9 ]; do i=$((i+1)); echo "line $i" >&2; done; printf "no newline"; exit 7';
      const endpoint = bench.endpoint(['/bin/sh', '-c', script]);
      await assert.rejects(
        endpoint.connect(scope),
        isCode('backend-unusable', /^fake ended with status 7 at its start: .*line 9/),
      );
      assert.ok(bench.lines.includes('info no newline'), bench.lines.join('\n'));
      await endpoint.surelyGone();
      assert.deepEqual(readdirSync(bench.directory), []);
    }));

  test('because it is not there: where it was looked for, and what to install', () =>
    withPrograms(async (bench, scope) => {
      const nowhere = bench.endpoint(['no-such-program'], { package: 'some-package' });
      const where = /there is no no-such-program in PATH, \/usr\/libexec or \/usr\/lib\/qemu; .* package some-package/;
      await assert.rejects(nowhere.connect(scope), isCode('backend-unusable', where));
      const file = bench.endpoint(['/etc/passwd']);
      await assert.rejects(file.connect(scope), isCode('backend-unusable', /\/etc\/passwd is no program/));
      assert.deepEqual(readdirSync(bench.directory), []);
    }));

  test('because it never listens: it is ended in a bounded time', () =>
    withPrograms(async (bench) => {
      const endpoint = bench.endpoint(['sleep', '1000']);
      const scope = new Scope();
      bench.hurry(20);
      await assert.rejects(endpoint.connect(scope), isCode('unavailable', /does not listen on its socket in time/));
      const [leader = 0] = bench.leaders;
      scope.close();
      await isGone(leader, 'it is ended');
    }));

  test('because it is given up while it starts', () =>
    withPrograms(async (bench) => {
      const endpoint = bench.endpoint(['sleep', '1000']);
      const scope = new Scope();
      const connected = endpoint.connect(scope);
      await eventually(async () => bench.leaders[0], 'it runs');
      scope.close();
      await assert.rejects(connected, isCode('unavailable', /given up/));
      await endpoint.surelyGone();
    }));

  test('because its socket would have too long a path', () =>
    withPrograms(async (bench, scope) => {
      const endpoint = bench.endpoint(listener(), { backend: 'b'.repeat(110) });
      await assert.rejects(endpoint.connect(scope), isCode('backend-unusable', /longer than 107 bytes.*shorter id/));
    }));

  test('because its limits are more than the service may give', () =>
    withPrograms(async (bench, scope) => {
      const endpoint = bench.endpoint(listener(), { openFiles: 2 ** 31 });
      await assert.rejects(
        endpoint.connect(scope),
        isCode('backend-unusable', /fake ended with .* at its start: prlimit: .*NOFILE/),
      );
    }));
});

test('a flood of output is bounded, counted, and stops nobody', () =>
  withPrograms(async (bench, scope) => {
    const flood = `setInterval(() => { for (let i = 0; i < 2000; i++) process.stderr.write('x'.repeat(900) + '\\n') }, 1)`;
    const endpoint = bench.endpoint(listener(flood));
    await endpoint.connect(scope);
    await eventually(async () => (bench.lines.length >= limits.programLineBurst ? true : undefined), 'it prints');
    scope.close();
    await endpoint.surelyGone();
    const longest = Math.max(...bench.lines.map((line) => line.length));
    assert.ok(longest < limits.programLineMaxBytes + 20, `${longest}`);
    assert.ok(bench.lines.length < 2 * limits.programLineBurst, `${bench.lines.length} lines`);
    const suppressed = bench.lines.map((line) => Number(/\((\d+) lines are not shown/.exec(line)?.[1] ?? 0));
    assert.ok(Math.max(...suppressed) > 0);
  }));

test('control characters of a program reach no terminal', () =>
  withPrograms(async (bench, scope) => {
    const endpoint = bench.endpoint(listener('console.error("a\\u001b[31mb\\u0007\\u009bc")'));
    await endpoint.connect(scope);
    await lineWith(bench.lines, 'info a [31mb c');
  }));

test('what the kernel tells of a process is understood, whatever its name is', () => {
  const rest = '5 7 8 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 4711 0';
  const row = { pid: 9, group: 7, session: 8, startTime: '4711', isDead: false, hasMemory: false };
  assert.deepEqual(parseStat(`9 (a) b (S) S ${rest}`), row);
  // The first thread has ended, two others run.
  assert.deepEqual(parseStat(`9 (a) Z ${rest}`), row);
  assert.deepEqual(parseStat(`9 (a) Z ${rest.replace(' 3 0 4711', ' 1 0 4711')}`), { ...row, isDead: true });
  assert.deepEqual(parseStat(`9 (a) X ${rest}`), { ...row, isDead: true });
  assert.equal(parseStat(''), undefined);
});
