/** Joins a word from parts, so that this file does not hold what it forbids. */
const word = (...parts: string[]): string => parts.join('');

const registryHosts = [
  ['registry.', 'npmjs.org'],
  ['registry.', 'yarnpkg.com'],
  ['deb.', 'debian.org'],
  ['security.', 'debian.org'],
  ['archive.', 'ubuntu.com'],
  ['index.', 'crates.io'],
  ['proxy.', 'golang.org'],
  ['pypi.', 'org'],
];

const forbidden: readonly { readonly what: string; readonly pattern: RegExp }[] = [
  {
    what: 'unfinished work',
    pattern: new RegExp(`\\b(${[word('TO', 'DO'), word('FIX', 'ME'), word('X', 'XX')].join('|')})\\b`),
  },
  {
    what: 'a path of one machine',
    pattern: new RegExp(`(?<![\\w.*$}])/(${[word('wo', 'rk'), word('tmp/', 'build')].join('|')})[/-]`),
  },
  {
    what: 'the host of a package registry',
    pattern: new RegExp(registryHosts.map((parts) => word(...parts).replaceAll('.', '\\.')).join('|')),
  },
  {
    what: 'a handler for a signal that means memory is broken',
    pattern: new RegExp(`process\\s*\\.\\s*(on|once|addListener)\\(\\s*['"\`]${word('SIG', 'SEGV')}`),
  },
];

/** Lines of `text` that hold what no file of the package should. */
export function forbiddenWords(file: string, text: string): string[] {
  return text
    .split('\n')
    .flatMap((line, i) =>
      forbidden
        .filter(({ pattern }) => pattern.test(line))
        .map(({ what }) => `${file}:${i + 1} has ${what}: ${line.trim().slice(0, 80)}`),
    );
}

/** Whether a changelog has an entry for `version`, or for what comes next. */
export function hasEntry(changelog: string, version: string): boolean {
  const names = [...changelog.matchAll(/^## \[?([^\]\s]+)/gm)].map((match) => match[1]);
  return names.includes(version) || names.includes('Unreleased');
}
