import { fileGraph, packageOf, reachable, resolveLink } from './graph.ts';
import type { SourceModel } from './parse.ts';

/** What each layer may import directly; it may also import what those may (see ARCHITECTURE.md). */
const layerTable: Readonly<Record<string, readonly string[]>> = {
  kit: [],
  wire: ['kit'],
  ports: ['kit'],
  'virtio-msg': ['wire', 'ports'],
  virtio: ['wire', 'ports'],
  libc: ['kit'],
  ffa: ['wire', 'ports', 'libc'],
  xen: ['ports', 'libc'],
  'vhost-user': ['wire', 'libc', 'virtio'],
  tee: ['ffa', 'libc'],
  device: ['virtio-msg', 'virtio', 'libc'],
  guest: ['device', 'virtio-msg', 'virtio', 'libc', 'xen'],
  bridge: ['guest', 'device', 'virtio-msg', 'virtio', 'libc', 'ffa', 'xen', 'vhost-user', 'tee'],
  app: ['bridge', 'guest', 'api'],
  // Of the bridge, the API sees its commands and events only.
  api: ['kit', 'bridge/commands', 'bridge/events'],
};

/** npm packages by layer; a layer that is absent uses none. koffi has its own rule. */
const packageTable: Readonly<Record<string, readonly string[]>> = {
  bridge: ['typebox'],
  app: ['pino', 'typebox'],
  api: ['fastify', 'prom-client', '@fastify/swagger', '@fastify/type-provider-typebox', 'pino', 'typebox'],
};

/** The layers and part-layers that a file belongs to, the whole layer first; empty outside src/ and api/. */
function layersOf(file: string): string[] {
  const parts = file.replace(/\.ts$/, '').split('/');
  if (parts[0] === 'api') return ['api'];
  if (parts[0] !== 'src') return [];
  return parts.slice(1).map((_, i) => parts.slice(1, i + 2).join('/'));
}

function allowedLayers(layer: string): Set<string> {
  // What the API may use of the bridge does not pass the bridge's own imports on.
  if (layer === 'api') return new Set(['api', ...(layerTable.api ?? [])]);
  return reachable(new Map(Object.entries(layerTable)), [layer]);
}

function fileViolations(model: SourceModel, files: ReadonlySet<string>): string[] {
  const layer = layersOf(model.path)[0];
  if (layer === undefined) return [];
  if (layerTable[layer] === undefined) return [`${model.path}: ${layer} is not in the layer table`];
  const allowed = allowedLayers(layer);
  return model.links.flatMap((link) => {
    const where = `${model.path}:${link.line}`;
    const npm = packageOf(link.specifier);
    if (npm !== undefined) return packageViolation(model.path, layer, npm).map((text) => `${where} ${text}`);
    const target = resolveLink(model.path, link.specifier, files);
    if (target === undefined) return [];
    const targets = layersOf(target);
    return targets.some((name) => allowed.has(name)) ? [] : [`${where} ${layer} may not import ${target}`];
  });
}

function packageViolation(file: string, layer: string, npm: string): string[] {
  if (npm === 'koffi') return file.endsWith('/native.ts') ? [] : ['only files named native.ts may import koffi'];
  return packageTable[layer]?.includes(npm) ? [] : [`${layer} may not import the package ${npm}`];
}

/** Imports that go upward or sideways, and packages outside the layer that may use them. */
export function layerViolations(models: readonly SourceModel[]): string[] {
  const files = new Set(models.map((model) => model.path));
  return models.flatMap((model) => fileViolations(model, files));
}

/** npm packages that the files below `directory` load, directly or through others, with one file that names each. */
export function packagesReachedFrom(models: readonly SourceModel[], directory: string): Map<string, string> {
  const starts = models.map((model) => model.path).filter((file) => file.startsWith(directory));
  const reached = reachable(fileGraph(models, ['import']), starts);
  const found = new Map<string, string>();
  for (const model of models.filter((candidate) => reached.has(candidate.path))) {
    for (const link of model.links) {
      const npm = packageOf(link.specifier);
      if (npm !== undefined && link.kind === 'import') found.set(npm, model.path);
    }
  }
  return found;
}
