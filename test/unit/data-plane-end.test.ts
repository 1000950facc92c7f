import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test } from 'node:test';

describe('the end of a process with a data plane', () => {
  const url = (file: string): string => new URL(`../../src/${file}.js`, import.meta.url).href;
  const parent = (file: string): string => `
    import { Worker } from 'node:worker_threads';
    import { createEventfd } from '${url('libc/eventfd')}';
    createEventfd();
    const worker = new Worker(${JSON.stringify(file)});
    worker.on('message', () => worker.terminate());
    worker.on('exit', (code) => console.log('exit', code));
  `;
  const run = (end: string, inLane: boolean) => {
    const body = `
      import { openDataPlane } from '${url('app/lane-data-plane')}';
      import { createEventfd } from '${url('libc/eventfd')}';
      const fd = () => createEventfd().number;
      const plane = openDataPlane({ dataPlaneWorkers: 2, dataPlaneSpinUs: 0 }, undefined, undefined);
      for (let i = 0; i < 2; i++) await plane.join({ kick: { from: { eventfd: fd() }, to: fd() } }, (why) => { throw new Error(why); });
      ${end}
    `;
    const folder = mkdtempSync(path.join(tmpdir(), 'vmsg-data-plane-'));
    const file = path.join(folder, 'program.mjs');
    writeFileSync(file, body);
    const main = inLane ? path.join(folder, 'main.mjs') : file;
    if (inLane) writeFileSync(main, parent(file));
    const { status, signal, stdout } = spawnSync(process.execPath, [main], {
      encoding: 'utf8',
      timeout: 20_000,
      killSignal: 'SIGKILL',
    });
    rmSync(folder, { recursive: true });
    return { status, signal, stdout };
  };

  for (const [name, end, status] of [
    ['process.exit', 'process.exit(3)', 3],
    ['an exception', "throw new Error('on purpose')", 1],
    ['a rejection', "await Promise.reject(new Error('on purpose'))", 1],
    ['close', 'await plane.close()', 0],
  ] as const) {
    test(`${name} ends it`, () => assert.deepEqual(run(end, false), { status, signal: null, stdout: '' }));
  }
  test('process.exit of a Worker that has one ends that Worker', () => {
    assert.deepEqual(run('process.exit(3)', true), { status: 0, signal: null, stdout: 'exit 3\n' });
  });
  test('terminate of a Worker that has one ends that Worker', () => {
    const end = "setInterval(() => {}, 1000); (await import('node:worker_threads')).parentPort.postMessage(1)";
    assert.deepEqual(run(end, true), { status: 0, signal: null, stdout: 'exit 1\n' });
  });
});
