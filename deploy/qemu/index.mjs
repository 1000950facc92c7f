import { compareVersions } from './versions.mjs';

const fieldNames = new Map([
  ['Package', 'name'],
  ['Version', 'version'],
  ['Architecture', 'architecture'],
  ['Depends', 'depends'],
  ['Pre-Depends', 'preDepends'],
  ['Provides', 'provides'],
  ['Filename', 'filename'],
  ['SHA256', 'sha256'],
  ['Size', 'size'],
]);

function parseStanza(stanza) {
  const found = {};
  for (const line of stanza.split('\n')) {
    const colon = line.indexOf(': ');
    const field = colon === -1 ? undefined : fieldNames.get(line.slice(0, colon));
    if (field !== undefined) found[field] = line.slice(colon + 2);
  }
  const { filename, sha256, size } = found;
  // The archive is trusted once its signature is checked; this keeps a strange line from becoming a strange path.
  if (!/^pool\/[\w.+~%/-]+\.deb$/.test(filename ?? '') || filename.includes('..')) return undefined;
  if (!/^[0-9a-f]{64}$/.test(sha256 ?? '') || !/^\d+$/.test(size ?? '')) return undefined;
  return { ...found, size: Number(size) };
}

/** @returns {{name: string, version: string | undefined}[][]} groups; one of each group is needed */
export function parseRelation(text = '') {
  return text.split(',').flatMap((group) => {
    if (group.trim() === '') return [];
    return [
      group.split('|').map((alternative) => {
        const [, name, version] = /^\s*([\w.+-]+)(?::\w+)?(?:\s*\(\s*=\s*([^)\s]+)\s*\))?/.exec(alternative) ?? [];
        return { name, version };
      }),
    ];
  });
}

/** A Packages index: the newest version of each name, and who provides virtual ones. */
export class PackageIndex {
  #packages = new Map();
  #providers = new Map();

  constructor(text) {
    for (const stanza of text.split('\n\n')) {
      const found = parseStanza(stanza);
      if (found?.name !== undefined && found.version !== undefined) this.#add(found);
    }
  }

  #add(found) {
    const known = this.#packages.get(found.name);
    if (known === undefined || compareVersions(found.version, known.version) > 0) this.#packages.set(found.name, found);
    for (const [{ name }] of parseRelation(found.provides)) {
      this.#providers.set(name, [...(this.#providers.get(name) ?? []), found.name]);
    }
  }

  /** The package of that name, `undefined` if there is none. */
  find(name) {
    return this.#packages.get(name);
  }

  need(name) {
    const found = this.find(name);
    if (found === undefined) throw new Error(`the archive has no package ${name}`);
    return found;
  }

  /**
   * The package and everything it depends on, directly or not; the first alternative that there is.
   * @param {string[]} [without] names that are left out, with what only they depend on
   */
  closure(name, without = []) {
    const chosen = new Map();
    const pending = [name];
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      const found = this.need(next);
      if (chosen.has(found.name)) continue;
      chosen.set(found.name, found);
      for (const group of [...parseRelation(found.preDepends), ...parseRelation(found.depends)]) {
        if (!group.some((alternative) => without.includes(alternative.name))) pending.push(this.#choose(group, chosen));
      }
    }
    return [...chosen.values()];
  }

  #choose(group, chosen) {
    const names = group.flatMap(({ name }) => [
      ...(this.find(name) ? [name] : []),
      ...(this.#providers.get(name) ?? []),
    ]);
    const picked = names.find((candidate) => chosen.has(candidate)) ?? names[0];
    if (picked === undefined) throw new Error(`the archive has none of ${group.map(({ name }) => name).join(', ')}`);
    return picked;
  }
}
