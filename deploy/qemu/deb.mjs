import { readFileSync } from 'node:fs';
import { UserError } from '../../scripts/lib/process.mjs';
import { needSuccess, needTool } from './tools.mjs';

const magic = '!<arch>\n';
const headerLength = 60;
const compressions = {
  'data.tar.xz': '--xz',
  'data.tar.gz': '--gzip',
  'data.tar.zst': '--zstd',
  'data.tar': undefined,
};

/** The member of a .deb (an `ar` archive, deb(5)) that holds the files. @param {Buffer} bytes */
export function dataMember(bytes) {
  if (bytes.toString('latin1', 0, magic.length) !== magic) throw new UserError('This is not a Debian package.');
  for (let at = magic.length; at + headerLength <= bytes.length; ) {
    const name = bytes
      .toString('latin1', at, at + 16)
      .trim()
      .replace(/\/$/, '');
    const size = Number(bytes.toString('latin1', at + 48, at + 58).trim());
    const start = at + headerLength;
    if (Object.hasOwn(compressions, name)) return { name, content: bytes.subarray(start, start + size) };
    at = start + size + (size % 2);
  }
  throw new UserError('The Debian package holds no files.');
}

const unwanted = ['doc', 'man', 'locale', 'bash-completion', 'lintian', 'bug', 'info'].map(
  (name) => `--exclude=./usr/share/${name}`,
);

/**
 * Unpacks the files of a .deb, as they are, into a directory.
 * @param {string[]} [members] patterns; without them everything but documentation
 */
export async function unpackDeb(file, directory, members) {
  const { name, content } = dataMember(readFileSync(file));
  const tar = needTool('tar', 'tar');
  if (name.endsWith('.xz')) needTool('xz', 'xz-utils');
  const compression = compressions[name];
  const options = ['--extract', '--file=-', `--directory=${directory}`, '--no-same-owner', '--keep-directory-symlink'];
  await needSuccess(
    [tar, ...options, ...(compression ? [compression] : []), ...(members ? ['--wildcards', ...members] : unwanted)],
    { input: content },
  );
}
