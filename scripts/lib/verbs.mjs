import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { bench } from './bench.mjs';
import { prepare } from './build.mjs';
import { check } from './check.mjs';
import { generate } from './generate.mjs';
import { Interrupted, UserError } from './process.mjs';
import { test, testXen } from './test.mjs';
import { root } from './tree.mjs';
import { xenImage, xenShell } from './xen.mjs';

/** Every verb takes the arguments after its name and returns the exit status; undefined leaves it to the program. */
const verbs = {
  demo: (args) => runProgram(['demo', ...args]),
  vmsg: runProgram,
  build: async () => {
    await prepare({ announceFresh: true });
    return 0;
  },
  generate,
  check,
  test,
  'test:xen': testXen,
  'xen:image': xenImage,
  'xen:shell': xenShell,
  bench,
};

/** Runs `vmsg` in this very process: signals, exit status and terminal then need no forwarding. */
async function runProgram(args) {
  await prepare();
  const main = path.join(root, 'dist/src/app/main.js');
  process.chdir(root);
  process.argv = [process.execPath, main, ...args];
  await import(pathToFileURL(main).href);
  return undefined;
}

export async function runVerb(name, args) {
  const verb = Object.hasOwn(verbs, name ?? '') ? verbs[name] : undefined;
  if (verb === undefined) {
    console.error(`usage: node scripts/run.mjs ${Object.keys(verbs).join('|')} [arguments]`);
    process.exitCode = 2;
    return;
  }
  // npm changes to the package root; relative paths of the user are resolved against INIT_CWD.
  process.env.INIT_CWD ??= process.cwd();
  try {
    const status = await verb(args);
    if (status !== undefined) process.exitCode = status;
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    console.error(error.message);
    process.exitCode = error instanceof Interrupted ? error.status : 1;
  }
}
