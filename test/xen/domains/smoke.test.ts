import assert from 'node:assert/strict';
import { test } from 'node:test';
import { listedDomains, xl } from '../support/dom0.ts';
import { createDomain } from '../support/domains.ts';

test('a domU that was paused runs when it may, runs commands, is seen by xl, and shuts down when it is asked to', async () => {
  const domain = await createDomain('smoke', { paused: true });
  try {
    assert.deepEqual(await listedDomains(), [0, domain.domid]);
    assert.equal(domain.consoleText, '');
    await domain.unpause();
    await domain.ready();
    assert.match(await xl('list'), /^smoke +\d+ +192 +1 /m);
    assert.deepEqual(await domain.run('echo hello; echo; echo "two  words" >&2; printf end; exit 3'), {
      code: 3,
      output: 'hello\n\ntwo  words\nend\n',
    });
    assert.deepEqual(await domain.run('true'), { code: 0, output: '' });
    const many = await Promise.all([1, 2, 3].map((n) => domain.run(`seq ${n} 400 | tail -n 200; exit ${n}`)));
    assert.deepEqual(
      many.map(({ code, output }) => [code, output.split('\n').length]),
      [1, 2, 3].map((n) => [n, 201]),
    );
    const sleeping = await domain.start('echo asleep; sleep 1000');
    await new Promise<void>((resolve) => sleeping.onLine(() => resolve()));
    await sleeping.kill();
    assert.equal(await sleeping.ended, 128 + 15);
    const node = await domain.run(`node -p 'process.arch + " " + require("/app/node_modules/koffi").version'`);
    assert.deepEqual(node, { code: 0, output: 'arm64 3.3.4\n' });
    const running = await domain.start('sleep 1000');
    await domain.shutdown();
    await assert.rejects(running.ended, /the domain smoke is gone/);
  } finally {
    await domain.destroy();
  }
  assert.deepEqual(await listedDomains(), [0]);
});
