import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, it } from 'node:test';
import { destroyDomain } from '../../src/app/destroy-domain.ts';
import { temporaryDirectory } from '../api/support.ts';

describe('destroying a domain', () => {
  it('is what the toolstack does, and its complaint is told', async (t) => {
    const directory = temporaryDirectory(t);
    const xl = path.join(directory, 'xl');
    const calls = path.join(directory, 'calls');
    const script = `#!/bin/sh\necho "$@" >>${calls}\n[ "$2" = 7 ] && exit 0\necho "no domain $2" >&2\nexit 1\n`;
    writeFileSync(xl, script, { mode: 0o755 });
    await destroyDomain(xl, 7);
    await assert.rejects(destroyDomain(xl, 8), { code: 'system-call', message: `${xl} destroy 8: no domain 8` });
    assert.equal(readFileSync(calls, 'utf8'), 'destroy 7\ndestroy 8\n');
  });

  it('fails where there is no toolstack', async () => {
    await assert.rejects(destroyDomain('/nowhere/xl', 7), { code: 'system-call', message: /ENOENT/ });
  });
});
