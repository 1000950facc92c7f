import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';

const tokenBytes = 32;
const pointer = '/api/tcp/tokenFile';
/** What may stand in the header (RFC 6750, section 2.1). */
const tokenPattern = /^[A-Za-z0-9._~+/-]+=*$/;

/**
 * The token of the API. A file that does not exist is made, with a random token.
 * @throws VmsgError `invalid-config` for a file that others can read, or that holds no good token; `system-call`
 */
export function openToken(path: string, uid: number): string {
  try {
    if (fs.lstatSync(path, { throwIfNoEntry: false }) === undefined) makeToken(path);
    return readToken(path, uid);
  } catch (error) {
    if (error instanceof VmsgError) throw error;
    throw new VmsgError('system-call', `${path}: ${(error as Error).message}`, { pointer, cause: error });
  }
}

/** The file appears under its name only when it is whole; one that somebody else made meanwhile stays. */
function makeToken(path: string): void {
  const draft = `${path}.${process.pid}`;
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = fs.constants;
  fs.rmSync(draft, { force: true });
  const fd = fs.openSync(draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  try {
    fs.writeSync(fd, `${randomBytes(tokenBytes).toString('base64url')}\n`);
    fs.fsyncSync(fd);
    fs.linkSync(draft, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    fs.closeSync(fd);
    fs.rmSync(draft, { force: true });
  }
}

function readToken(path: string, uid: number): string {
  const refuse = (why: string): never => {
    throw new VmsgError('invalid-config', `${path} ${why}`, { pointer });
  };
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
  const fd = fs.openSync(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  try {
    const found = fs.fstatSync(fd);
    if (!found.isFile()) refuse('is not a file');
    if (found.uid !== uid) refuse(`belongs to the user ${found.uid}, not to ${uid}`);
    if ((found.mode & 0o077) !== 0) refuse('can be read or written by other users; set its mode to 0600');
    if (found.size > limits.apiTokenFileMaxBytes) refuse(`is larger than ${limits.apiTokenFileMaxBytes} bytes`);
    const token = fs.readFileSync(fd, 'utf8').trim();
    if (token.length < limits.apiTokenMinChars || !tokenPattern.test(token)) {
      refuse(`must hold a token: at least ${limits.apiTokenMinChars} of A-Z, a-z, 0-9 and -._~+/`);
    }
    return token;
  } finally {
    fs.closeSync(fd);
  }
}
