import { prepare, prepareTools } from './build.mjs';
import { syncGenerated } from './generate.mjs';
import { capture, secondsSince, UserError } from './process.mjs';
import { testCommand, testFiles } from './test.mjs';

const biomePath = 'node_modules/@biomejs/biome/bin/biome';

/** Each step returns what is wrong as text, or '' when nothing is. */
async function lint(fix) {
  const flags = ['check', '--error-on-warnings', ...(fix ? ['--write'] : []), '.'];
  const { status, output } = await capture([process.execPath, biomePath, ...flags]);
  return status === 0 ? '' : output;
}

async function types() {
  try {
    await prepare();
    return '';
  } catch (error) {
    if (error instanceof UserError) return error.message;
    throw error;
  }
}

async function generated(fix) {
  const differences = await syncGenerated(fix);
  return fix || differences.length === 0 ? '' : `${differences.join('\n')}\nRun \`npm run generate\`.`;
}

async function tidy() {
  const files = testFiles(['test/tidy']);
  if (files.length === 0) return 'The tidy tests are not built.';
  const { status, output } = await capture(testCommand(files, ['--test-reporter=./scripts/lib/findings-reporter.mjs']));
  return status === 0 ? '' : output || `The tidy tests ended with status ${status}.`;
}

/** The verb: runs every step, also after a failure. `--fix` lets lint and generators write. */
export async function check(args) {
  const fix = args.includes('--fix');
  await prepareTools();
  const steps = { lint, types, generated, tidy };
  const failed = [];
  for (const [name, step] of Object.entries(steps)) {
    const start = performance.now();
    let problem;
    try {
      problem = await step(fix);
    } catch (error) {
      problem = error.stack;
    }
    if (problem !== '') {
      failed.push(name);
      console.log(problem.trimEnd());
    }
    console.log(`${problem === '' ? 'ok    ' : 'FAILED'} ${name.padEnd(10)} ${secondsSince(start)}`);
  }
  if (failed.length === 0) return 0;
  console.log(`check failed: ${failed.join(', ')}`);
  return 1;
}
