import { fileGraph, reachable, resolveLink } from './graph.ts';
import type { ExportedName, SourceModel } from './parse.ts';

/** Where the world comes in: the command, the package export, the scripts and every test. */
function isEntry(file: string): boolean {
  return ['src/app/main.ts', 'src/guest/index.ts'].includes(file) || /^(scripts|deploy)\/|\.test\.ts$/.test(file);
}

/** Files that no entry reaches, by import or by a path in a string (workers, spawned programs). */
export function deadFiles(models: readonly SourceModel[]): string[] {
  const entries = models.map((model) => model.path).filter(isEntry);
  const alive = reachable(fileGraph(models, ['import', 'reference']), entries);
  return models.map((model) => model.path).filter((file) => !alive.has(file));
}

/**
 * Exported names that no other file imports. A type that its own file uses passes: it names the shape of something
 * that is exported.
 */
export function deadExports(models: readonly SourceModel[]): string[] {
  const files = new Set(models.map((model) => model.path));
  const used = new Map<string, Set<string>>();
  for (const model of models) {
    for (const link of model.links) {
      const target = resolveLink(model.path, link.specifier, files);
      if (target === undefined) continue;
      const names = used.get(target) ?? new Set();
      for (const name of link.names) names.add(name);
      used.set(target, names);
    }
  }
  const isUsed = (file: string, found: ExportedName): boolean => {
    const names = used.get(file);
    return names?.has('*') || names?.has(found.name) || (found.isType && found.usedInside);
  };
  return models
    .filter((model) => !isEntry(model.path))
    .flatMap((model) =>
      model.exports
        .filter((found) => !isUsed(model.path, found))
        .map((found) => `${model.path}:${found.line} nobody imports ${found.name}`),
    );
}
