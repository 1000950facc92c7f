import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Scope } from '../../src/kit/scope.ts';
import { compileBaselines } from './compiler.ts';
import { type Item, type Means, namesOf, type Race, type Run } from './item.ts';
import { items } from './items.ts';
import { type Placement, Processors } from './placement.ts';
import { plot } from './plot.ts';
import { preparedLines, readPrepared } from './prepared.ts';
import { loadNotes, machineLines, missingNotes, type Result, ratioResult, valueResult } from './report.ts';
import { inTurns, type Sample } from './stats.ts';
import { markdown, textTable } from './tables.ts';
import { openWorld, type World } from './world.ts';

const usage = `npm run bench -- [--json FILE] [--md FILE] [--svg FILE] [--publish] [--only NAME] [--quick]

Measures this tree against C programs and qemu-storage-daemon, in turns, and prints a table; docs/bench.md explains it.
  --json FILE   also writes the results as JSON
  --md FILE     also writes them as Markdown
  --svg FILE    also writes them as a plot
  --publish     writes all three into docs/bench
  --only NAME   only what has NAME in its name; may be given more than once
  --quick       shorter and fewer runs
`;

const publishDirectory = fileURLToPath(new URL('../../../docs/bench/', import.meta.url));

/** How long each side runs at a time, how often, and how long before it counts. */
interface Pace {
  readonly rounds: number;
  readonly runMs: number;
  readonly warmUpMs: number;
}

// A fresh process gets faster for about a second, while its code is compiled: four to seven times for blk.
const fullPace: Pace = { rounds: 15, runMs: 250, warmUpMs: 1500 };
const quickPace: Pace = { rounds: 3, runMs: 120, warmUpMs: 1200 };

interface Options {
  readonly json: string | undefined;
  readonly md: string | undefined;
  readonly svg: string | undefined;
  readonly isChosen: (name: string) => boolean;
  readonly quick: boolean;
}

function parse(args: string[]): Options | 'help' {
  const { values } = parseArgs({
    args,
    options: {
      json: { type: 'string' },
      md: { type: 'string' },
      svg: { type: 'string' },
      publish: { type: 'boolean' },
      only: { type: 'string', multiple: true },
      quick: { type: 'boolean' },
      help: { type: 'boolean' },
    },
  });
  if (values.help) return 'help';
  const { only, publish, quick = false } = values;
  if (publish && (only !== undefined || quick)) throw new Error('--publish is for everything, at full length');
  const isChosen = (name: string): boolean => only === undefined || only.some((part) => name.includes(part));
  const names = items.flatMap(namesOf);
  if (!names.some(isChosen)) {
    throw new Error(`nothing is named ${only?.join(', ')}; there are:\n${names.map((name) => `  ${name}`).join('\n')}`);
  }
  const file = (given: string | undefined, published: string): string | undefined =>
    publish ? path.join(publishDirectory, published) : given && userPath(given);
  const { json, md, svg } = values;
  return {
    json: file(json, 'results.json'),
    md: file(md, 'README.md'),
    svg: file(svg, 'results.svg'),
    isChosen,
    quick,
  };
}

/** npm changes to the package root; the user's paths count from where the user is. */
const userPath = (file: string): string => path.resolve(process.env.INIT_CWD ?? process.cwd(), file);

async function race(item: Race, means: Means, pace: Pace, isChosen: Options['isChosen']): Promise<Result[]> {
  const chosen = item.comparisons.filter(({ name }) => isChosen(name));
  const wanted = new Set(chosen.flatMap(({ ours, baseline }) => [ours, baseline]));
  const opened = Object.entries(await item.open(means, wanted)).filter(([name]) => wanted.has(name));
  const runs = opened.filter((side): side is [string, Run] => typeof side[1] !== 'string');
  for (const [, run] of runs) await run(pace.warmUpMs);
  const taken = await inTurns(
    pace.rounds,
    runs.map(
      ([, run]) =>
        () =>
          run(pace.runMs),
    ),
  );
  const samples: Record<string, readonly Sample[] | string> = {};
  for (const [name, side] of opened) if (typeof side === 'string') samples[name] = side;
  for (const [i, [name]] of runs.entries()) samples[name] = taken[i]!;
  return chosen.map((comparison) => ratioResult(item, comparison, samples));
}

async function measure(item: Item, means: Means, pace: Pace, isChosen: Options['isChosen']): Promise<Result[]> {
  if (item.kind === 'race') return race(item, means, pace, isChosen);
  const estimates = await item.measure(means);
  return item.values.map((value, i) => valueResult(value, estimates[i]!)).filter(({ name }) => isChosen(name));
}

type Shared = Pick<Means, 'baselines' | 'processors' | 'prepared' | 'quick'>;

async function measureAll({ isChosen, quick }: Options, shared: Shared, scope: Scope): Promise<Result[]> {
  const worlds = new Map<Placement, Promise<World>>();
  const world = (placement: Placement): Promise<World> => {
    const opened = worlds.get(placement) ?? openWorld(placement, shared, scope);
    worlds.set(placement, opened);
    return opened;
  };
  const results: Result[] = [];
  const chosen = items.filter((item) => namesOf(item).some(isChosen));
  for (const [i, item] of chosen.entries()) {
    const [first, ...more] = namesOf(item).filter(isChosen);
    process.stderr.write(`${i + 1}/${chosen.length} ${first}${more.length > 0 ? ` and ${more.length} more` : ''} … `);
    const start = performance.now();
    const programs = new Scope();
    scope.own(programs);
    try {
      const means = { ...shared, scope: programs, world };
      results.push(...(await measure(item, means, quick ? quickPace : fullPace, isChosen)));
    } finally {
      programs.close();
    }
    process.stderr.write(`${((performance.now() - start) / 1000).toFixed(1)} s\n`);
  }
  return results;
}

function write(file: string | undefined, text: string): void {
  if (file === undefined) return;
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
}

async function run(options: Options, scope: Scope): Promise<void> {
  const { quick, json, md, svg } = options;
  const prepared = readPrepared();
  const baselines = compileBaselines(prepared, scope);
  const processors = Processors.find();
  // Before anything runs: the load is then that of others.
  const facts = [...machineLines(), ...preparedLines(prepared), ...loadNotes(), ...processors.notes()];
  for (const line of facts) console.log(line);
  const results = await measureAll(options, { baselines, processors, prepared, quick }, scope);
  const missing = missingNotes(results);
  console.log(`\n${textTable(results)}\n`);
  for (const line of missing) console.log(line);
  console.log('A ratio above 1 means that ours is better; 95 %: interval of the median.');
  const all = [...facts, ...missing];
  write(json, `${JSON.stringify({ facts: all, results }, null, 2)}\n`);
  write(md, markdown(results, all, svg === undefined ? undefined : path.basename(svg)));
  write(svg, plot(results));
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
