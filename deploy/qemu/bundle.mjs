import { cpSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { needSuccess } from './tools.mjs';

/** Programs that are started again and again, by directory; without `entries` every file there. */
const programs = [
  { directory: 'dist/src/app', entries: ['main.js', 'lane-worker.js', 'data-plane-worker.js'] },
  { directory: 'dist/test/xen/guests' },
];
/**
 * What Fastify loads when a server asks for it; ours does not. Put together with the rest it would be parsed at every
 * start, which is most of its cost.
 */
const unused = ['@fastify/ajv-compiler', '@fastify/fast-json-stringify-compiler', 'light-my-request'];
/** What CommonJS modules that are taken in expect to be there. */
const banner = "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);";

/**
 * Puts programs together with the modules that they load: under emulation opening each of a thousand files takes most
 * of a start. Files that find others by their own place stay in their directory.
 * @param {string} tree with node_modules
 * @param {string} bundler program
 */
export async function bundlePrograms(tree, bundler, scratch) {
  for (const [i, { directory, entries }] of programs.entries()) {
    const files = entries ?? readdirSync(path.join(tree, directory)).filter((name) => name.endsWith('.js'));
    const output = path.join(scratch, `bundle-${i}`);
    await needSuccess([
      bundler,
      ...files.map((name) => path.join(tree, directory, name)),
      ...['--bundle', '--splitting', '--format=esm', '--platform=node', '--target=node22'],
      ...['koffi', ...unused].map((name) => `--external:${name}`),
      ...[`--banner:js=${banner}`, '--minify-whitespace', `--outdir=${output}`, '--log-level=warning'],
    ]);
    cpSync(output, path.join(tree, directory), { recursive: true });
  }
}
