import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { XenUnavailable } from './errors.mjs';

const debianSuite =
  /^(?:bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable|experimental)(?:-updates|-backports|-proposed-updates)?$/;

/** Entries of apt's one-line format: `deb [options] uri suite component...`. */
export function parseSourcesList(text) {
  return text.split('\n').flatMap((line) => {
    const words = line
      .replace(/#.*/, '')
      .replace(/\[[^\]]*\]/, ' ')
      .trim()
      .split(/\s+/);
    if (words[0] !== 'deb' || words.length < 4) return [];
    return [{ uris: [words[1]], suites: [words[2]], components: words.slice(3) }];
  });
}

/** Entries of apt's deb822 format, those that are switched off left out. */
export function parseDeb822(text) {
  const withoutComments = text.replace(/^#.*\n?/gm, '');
  return withoutComments.split(/\n\s*\n/).flatMap((stanza) => {
    const fields = new Map();
    for (const [, name, value] of stanza.matchAll(/^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)/gm)) {
      fields.set(name.toLowerCase(), value.trim().split(/\s+/));
    }
    const isOff = ['no', 'false', '0', 'off'].includes(fields.get('enabled')?.[0]?.toLowerCase());
    if (isOff || !fields.get('types')?.includes('deb')) return [];
    return [
      {
        uris: fields.get('uris') ?? [],
        suites: fields.get('suites') ?? [],
        components: fields.get('components') ?? [],
      },
    ];
  });
}

/** The first http(s) address among apt's entries that is a main archive of Debian. */
export function mirrorOf(entries) {
  for (const { uris, suites, components } of entries) {
    if (!components.includes('main') || !suites.some((suite) => debianSuite.test(suite))) continue;
    const uri = uris.find((candidate) => /^https?:\/\//.test(candidate) && !/security|debug/.test(candidate));
    if (uri !== undefined) return uri.replace(/\/+$/, '');
  }
  return undefined;
}

function readIfThere(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : '';
}

function aptEntries(directory) {
  const parts = path.join(directory, 'sources.list.d');
  const names = existsSync(parts) ? readdirSync(parts).sort() : [];
  const read = (suffix, parse) =>
    names.filter((name) => name.endsWith(suffix)).flatMap((name) => parse(readIfThere(path.join(parts, name))));
  return [
    ...parseSourcesList(readIfThere(path.join(directory, 'sources.list'))),
    ...read('.sources', parseDeb822),
    ...read('.list', parseSourcesList),
  ];
}

/** The address of the Debian archive: DEBIAN_MIRROR, else what apt on this host uses. */
export function findMirror(env = process.env, aptDirectory = '/etc/apt') {
  const mirror = env.DEBIAN_MIRROR?.replace(/\/+$/, '') || mirrorOf(aptEntries(aptDirectory));
  if (mirror !== undefined) return mirror;
  throw new XenUnavailable(
    'no Debian archive is known: set DEBIAN_MIRROR to the address of one (apt on this host has none)',
  );
}
