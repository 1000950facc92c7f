import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { Scope } from '../../src/kit/scope.ts';
import { compileBaselines } from './compiler.ts';
import { items as basicItems, type Item, type Means } from './items.ts';
import { joinedItems, joinedNotes } from './items-joined.ts';
import { type Placement, Processors } from './placement.ts';
import { loadNotes, machineLines, markdown, type Result, resultOf, textTable } from './report.ts';
import { compare, interleave } from './stats.ts';
import { openWorld, type World } from './world.ts';

const usage = `npm run bench -- [--json FILE] [--md FILE] [--only NAME] [--quick]

Measures this tree against C programs of its own, in turns, and prints a table; docs/bench.md explains it.
  --json FILE   also writes the results as JSON
  --md FILE     also writes them as Markdown
  --only NAME   only what has NAME in its name; may be given more than once
  --quick       shorter and fewer runs
`;

const items: readonly Item[] = [...basicItems, ...joinedItems];

/** How long each side runs at a time, how often, and how long before it counts. */
interface Pace {
  readonly pairs: number;
  readonly runMs: number;
  readonly warmUpMs: number;
}

// A fresh process gets faster for about a second, while its code is compiled: four to seven times for blk.
const fullPace: Pace = { pairs: 11, runMs: 350, warmUpMs: 1500 };
const quickPace: Pace = { pairs: 3, runMs: 120, warmUpMs: 1200 };
/** C is compiled already; this fills the page cache and wakes the processors. */
const baselineWarmUpMs = 100;

interface Options {
  readonly json: string | undefined;
  readonly md: string | undefined;
  readonly chosen: readonly Item[];
  readonly pace: Pace;
}

function parse(args: string[]): Options | 'help' {
  const { values } = parseArgs({
    args,
    options: {
      json: { type: 'string' },
      md: { type: 'string' },
      only: { type: 'string', multiple: true },
      quick: { type: 'boolean' },
      help: { type: 'boolean' },
    },
  });
  if (values.help) return 'help';
  const { only } = values;
  const chosen = items.filter((item) => only === undefined || only.some((part) => item.name.includes(part)));
  if (chosen.length === 0) throw new Error(`nothing is named ${only?.join(', ')}; there are:\n${names()}`);
  return { json: values.json, md: values.md, chosen, pace: values.quick ? quickPace : fullPace };
}

const names = (): string => items.map((item) => `  ${item.name}`).join('\n');

/** npm changes to the package root; the user's paths count from where the user is. */
const userPath = (file: string): string => path.resolve(process.env.INIT_CWD ?? process.cwd(), file);

async function measure(item: Item, means: Means, pace: Pace): Promise<Result> {
  const { ours, baseline } = await item.open(means);
  await ours(pace.warmUpMs);
  await baseline?.(baselineWarmUpMs);
  const runBaseline = baseline === null ? null : () => baseline(pace.runMs);
  const samples = await interleave(pace.pairs, () => ours(pace.runMs), runBaseline);
  return resultOf(item, compare(item.metric, samples.first, samples.second));
}

type Shared = Pick<Means, 'baselines' | 'processors'>;

async function measureAll(options: Options, shared: Shared, scope: Scope): Promise<Result[]> {
  const worlds = new Map<Placement, Promise<World>>();
  const world = (placement: Placement): Promise<World> => {
    const opened = worlds.get(placement) ?? openWorld(placement, shared.processors, scope);
    worlds.set(placement, opened);
    return opened;
  };
  const results: Result[] = [];
  for (const [i, item] of options.chosen.entries()) {
    process.stderr.write(`${i + 1}/${options.chosen.length} ${item.name} … `);
    const start = performance.now();
    const programs = new Scope();
    scope.own(programs);
    try {
      results.push(await measure(item, { ...shared, scope: programs, world }, options.pace));
    } finally {
      programs.close();
    }
    process.stderr.write(`${((performance.now() - start) / 1000).toFixed(1)} s\n`);
  }
  return results;
}

async function run(options: Options, scope: Scope): Promise<void> {
  const baselines = compileBaselines(scope);
  const processors = Processors.find();
  const notes = [...loadNotes(), ...processors.notes(), ...joinedNotes];
  if (baselines === undefined) notes.push('there is no gcc here: nothing to compare with, ours only');
  // Before anything runs: the load is then that of others.
  const facts = [...machineLines(), ...notes];
  for (const line of facts) console.log(line);
  const results = await measureAll(options, { baselines, processors }, scope);
  console.log(
    `\n${textTable(results)}\n\nA ratio above 1 means that ours is better; spread: 10 % and 90 % of the pairs.`,
  );
  if (options.json !== undefined) writeFileSync(userPath(options.json), `${JSON.stringify({ results }, null, 2)}\n`);
  if (options.md !== undefined) writeFileSync(userPath(options.md), markdown(results, facts));
}

async function main(): Promise<number> {
  let options: Options | 'help';
  try {
    options = parse(process.argv.slice(2));
  } catch (error) {
    console.error((error as Error).message);
    return 2;
  }
  if (options === 'help') {
    process.stdout.write(usage);
    return 0;
  }
  const scope = new Scope();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      scope.close();
      process.exit(1);
    });
  }
  try {
    await run(options, scope);
    return 0;
  } catch (error) {
    console.error(`bench: ${(error as Error).message}`);
    return 1;
  } finally {
    scope.close();
  }
}

process.exitCode = await main();
