import { existsSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { UserError } from '../../scripts/lib/process.mjs';
import { XenUnavailable } from './errors.mjs';
import { needTool, runTool } from './tools.mjs';

const keyrings = ['debian-archive-keyring.pgp', 'debian-archive-keyring.gpg'].map((name) =>
  path.join('/usr/share/keyrings', name),
);

function findKeyring(env) {
  const configured = env.DEBIAN_KEYRING;
  const found = (configured ? [configured] : keyrings).find((file) => existsSync(file));
  if (found !== undefined) return found;
  throw new XenUnavailable(
    configured
      ? `the keyring ${configured} (DEBIAN_KEYRING) does not exist`
      : 'the keys of the Debian archive are missing (Debian package debian-archive-keyring, or name a file in DEBIAN_KEYRING)',
  );
}

/** Whether gpgv's status lines show a valid signature and none that contradicts the text; unknown keys do not matter. */
export function isWellSigned(statusLines) {
  const words = statusLines.split('\n').map((line) => /^\[GNUPG:\] (\w+)/.exec(line)?.[1]);
  return words.includes('VALIDSIG') && words.includes('GOODSIG') && !words.includes('BADSIG');
}

/**
 * Checks the signature of an InRelease file.
 * @returns {Promise<string>} the signed text, and nothing else of the file
 */
export async function verifyRelease(cache, inRelease, env = process.env) {
  const gpgv = needTool('gpgv', 'gpgv');
  const keyring = findKeyring(env);
  return await cache.withScratch(async (directory) => {
    const file = path.join(directory, 'InRelease');
    writeFileSync(file, inRelease);
    const command = [gpgv, '--status-fd', '2', '--keyring', keyring, '--output', '-', file];
    const { stdout, stderr } = await runTool(command, { env: { ...env, GNUPGHOME: directory, LC_ALL: 'C' } });
    if (isWellSigned(stderr)) return stdout.toString();
    const said = stderr
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('[GNUPG:]'))
      .join('; ');
    throw new UserError(
      `The index of the Debian archive is not signed by a key of ${keyring}. Either the keyring is too old ` +
        `(update debian-archive-keyring) or the archive was tampered with. gpgv says: ${said}`,
    );
  });
}

/** @returns {{field(name: string): string | undefined, sha256: Map<string, string>}} of the text of a Release file */
export function parseRelease(text) {
  const fields = new Map([...text.matchAll(/^([\w-]+): *(.*)$/gm)].map(([, name, value]) => [name, value.trim()]));
  const list = /^SHA256:\n((?: .*\n?)*)/m.exec(text)?.[1] ?? '';
  const sha256 = new Map(
    [...list.matchAll(/^ ([0-9a-f]{64}) +\d+ +(\S+)$/gm)].map(([, digest, name]) => [name, digest]),
  );
  return { field: (name) => fields.get(name), sha256 };
}
