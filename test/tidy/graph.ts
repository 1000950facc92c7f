import path from 'node:path';
import type { Link, SourceModel } from './parse.ts';

export type Graph = ReadonlyMap<string, readonly string[]>;

/** Finds the file that a relative specifier in `from` means, `undefined` if it is none of `files`. */
export function resolveLink(from: string, specifier: string, files: ReadonlySet<string>): string | undefined {
  if (!specifier.startsWith('.')) return undefined;
  const joined = path.posix.join(path.posix.dirname(from), specifier);
  // Scripts import what the compiler wrote.
  const source = joined.startsWith('dist/') ? joined.slice('dist/'.length) : joined;
  return [source, source.replace(/\.js$/, '.ts')].find((candidate) => files.has(candidate));
}

/** The package of a bare specifier, `undefined` for relative ones and Node's own modules. */
export function packageOf(specifier: string): string | undefined {
  if (specifier.startsWith('.') || specifier.startsWith('node:')) return undefined;
  const parts = specifier.split('/');
  return specifier.startsWith('@') ? parts.slice(0, 2).join('/') : parts[0];
}

export function fileGraph(models: readonly SourceModel[], kinds: readonly Link['kind'][]): Graph {
  const files = new Set(models.map((model) => model.path));
  const targets = (model: SourceModel): string[] =>
    model.links
      .filter((link) => kinds.includes(link.kind))
      .flatMap((link) => resolveLink(model.path, link.specifier, files) ?? []);
  return new Map(models.map((model) => [model.path, [...new Set(targets(model))]]));
}

/** Everything that can be reached from `entries`, themselves included. */
export function reachable(graph: Graph, entries: Iterable<string>): Set<string> {
  const seen = new Set<string>();
  const pending = [...entries];
  for (let file = pending.pop(); file !== undefined; file = pending.pop()) {
    if (seen.has(file)) continue;
    seen.add(file);
    pending.push(...(graph.get(file) ?? []));
  }
  return seen;
}

/** One cycle per group of files that reach each other, as a closed path `a, b, a`. */
export function findCycles(graph: Graph): string[][] {
  const cycles: string[][] = [];
  const reported = new Set<string>();
  for (const start of graph.keys()) {
    if (reported.has(start)) continue;
    const cycle = shortestCycle(graph, start);
    if (cycle === undefined) continue;
    cycles.push(cycle);
    for (const file of cycle) reported.add(file);
  }
  return cycles;
}

function shortestCycle(graph: Graph, start: string): string[] | undefined {
  const cameFrom = new Map<string, string>();
  const pending = [start];
  for (let file = pending.shift(); file !== undefined; file = pending.shift()) {
    for (const next of graph.get(file) ?? []) {
      if (next === start) return [start, ...pathTo(file, cameFrom, start), start];
      if (cameFrom.has(next)) continue;
      cameFrom.set(next, file);
      pending.push(next);
    }
  }
  return undefined;
}

function pathTo(file: string, cameFrom: ReadonlyMap<string, string>, start: string): string[] {
  const steps: string[] = [];
  for (let at: string | undefined = file; at !== undefined && at !== start; at = cameFrom.get(at)) steps.unshift(at);
  return steps;
}
