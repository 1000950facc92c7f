import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { openToken } from '../../src/app/config-token.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { temporaryDirectory } from '../api/support.ts';

const uid = process.getuid?.() ?? 0;
const good = 'x'.repeat(limits.apiTokenMinChars);

function written(t: TestContext, content: string, mode = 0o600): string {
  const file = path.join(temporaryDirectory(t), 'token');
  fs.writeFileSync(file, content);
  fs.chmodSync(file, mode);
  return file;
}

const refused =
  (message: RegExp, code = 'invalid-config') =>
  (error: unknown) => {
    assert.ok(error instanceof VmsgError, String(error));
    assert.deepEqual([error.code, error.pointer], [code, '/api/tcp/tokenFile']);
    assert.match(error.message, message);
    return true;
  };

describe('config: the token of the API', () => {
  it('is made where there is none, for its owner only, and stays', (t) => {
    const directory = temporaryDirectory(t);
    const file = path.join(directory, 'token');
    const mask = process.umask(0);
    t.after(() => process.umask(mask));
    const token = openToken(file, uid);
    assert.match(token, /^[A-Za-z0-9_-]{43}$/);
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    assert.equal(fs.readFileSync(file, 'utf8'), `${token}\n`);
    assert.deepEqual(fs.readdirSync(directory), ['token'], 'nothing else is left');
    assert.equal(openToken(file, uid), token);
    assert.notEqual(openToken(path.join(directory, 'other'), uid), token);
  });

  it('may be chosen', (t) => {
    assert.equal(openToken(written(t, `  ${good}\n`), uid), good);
    assert.equal(openToken(written(t, 'abc.DEF_123~+/-xy==', 0o400), uid), 'abc.DEF_123~+/-xy==');
  });

  for (const mode of [0o640, 0o604, 0o620, 0o602, 0o611, 0o666]) {
    it(`is refused in a file of mode ${mode.toString(8)}`, (t) => {
      const file = written(t, good, mode);
      assert.throws(() => openToken(file, uid), refused(/can be read or written by other users; set its mode to 0600/));
    });
  }

  for (const [what, content] of [
    ['nothing', ''],
    ['too little', good.slice(1)],
    ['a space', `${good} ${good}`],
    ['two lines', `${good}\n${good}`],
    ['what no header can carry', `${good}\u00e9`],
  ] as const) {
    it(`is refused when the file holds ${what}`, (t) => {
      assert.throws(() => openToken(written(t, content), uid), refused(/must hold a token: at least 16/));
    });
  }

  it('is refused when the file is large', (t) => {
    const file = written(t, 'x'.repeat(limits.apiTokenFileMaxBytes + 1));
    assert.throws(() => openToken(file, uid), refused(/larger than 4096 bytes/));
  });

  it('is refused in a file of somebody else, behind a link, and in what is no file', (t) => {
    const file = written(t, good);
    assert.throws(() => openToken(file, uid + 1), refused(/belongs to the user/));
    const link = `${file}-link`;
    fs.symlinkSync(file, link);
    assert.throws(() => openToken(link, uid), refused(/ELOOP/, 'system-call'));
    assert.throws(() => openToken(path.dirname(file), uid), refused(/is not a file/));
    fs.symlinkSync(path.join(path.dirname(file), 'nowhere'), `${file}-dangling`);
    assert.throws(() => openToken(`${file}-dangling`, uid), refused(/ELOOP/, 'system-call'));
    assert.throws(() => openToken('/nowhere/at/all', uid), refused(/\/nowhere\/at\/all.*ENOENT/, 'system-call'));
  });

  it('never appears half written', (t) => {
    const directory = temporaryDirectory(t);
    const file = path.join(directory, 'token');
    // What a killed service left.
    fs.writeFileSync(`${file}.${process.pid}`, 'half');
    assert.match(openToken(file, uid), /^[A-Za-z0-9_-]{43}$/);
    assert.deepEqual(fs.readdirSync(directory), ['token']);
  });
});
