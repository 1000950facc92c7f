const resultLine = /^(\s*)(?:not )?ok \d+ - (.*)$/;
/** `# SKIP`, or the mark of a test that is still to be done. */
const directive = /^(.*?) # ([A-Z]+)(?: (.*))?$/;
const summaryLine = /^# (tests|pass|fail|cancelled|skipped|todo) (\d+)$/;
/** What a test said with `t.diagnostic`; Node puts it behind the result. The log of a service looks the same, but for its JSON. */
const remarkLine = /^# (?!\{|Subtest: |(?:tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$)(.+)$/;

/** Reads the TAP of `node --test` line by line and keeps what decides about the run. */
export class TapReader {
  /** The closing counts; the last ones count, because tests may print such lines themselves. */
  counts = {};
  /** Names of tests and suites that were skipped, or are marked as to be done. */
  skipped = [];
  todo = [];
  /** Remarks of tests that are in no suite: `{test, text}`. */
  remarks = [];
  #test = '';
  #detailIndent;
  #rest = '';

  /** @param {string} text the next piece of the stream, cut anywhere */
  push(text) {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop();
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (this.#detailIndent !== undefined) {
      if (line === `${this.#detailIndent}...`) this.#detailIndent = undefined;
      return;
    }
    if (line.trimStart() === '---') {
      this.#detailIndent = line.slice(0, -'---'.length);
      return;
    }
    const summary = summaryLine.exec(line);
    if (summary) this.counts[summary[1]] = Number(summary[2]);
    const [, indent, name = ''] = resultLine.exec(line) ?? [];
    if (indent === '') this.#test = unescapeName(name);
    const [, remark] = remarkLine.exec(line) ?? [];
    if (remark !== undefined) this.remarks.push({ test: this.#test, text: remark });
    const marked = directive.exec(name);
    if (marked) (marked[2] === 'SKIP' ? this.skipped : this.todo).push(unescapeName(marked[1]));
  }
}

function unescapeName(name) {
  return name.replaceAll('\\#', '#').replaceAll('\\\\', '\\');
}

/** @returns {Set<string>} the test names of an expected-skips file: one a line, the reason after ` # ` */
export function parseExpectedSkips(text) {
  const names = text.split('\n').map((line) => line.split(/(?:^|\s+)#\s/)[0].trim());
  return new Set(names.filter((name) => name !== ''));
}

/**
 * What is wrong with a run beyond failed tests.
 * @param {TapReader} reader
 * @param {Set<string> | undefined} expectedSkips names that may be skipped; undefined when the caller chose tests by
 *   name, because Node then counts the others as skipped
 * @returns {string[]} sentences
 */
export function judge(reader, expectedSkips) {
  const problems = [];
  if (!((reader.counts.pass ?? 0) > 0)) problems.push('No test passed.');
  if (expectedSkips === undefined) return problems;
  const unexpected = reader.skipped.filter((name) => !expectedSkips.has(name));
  for (const name of unexpected) problems.push(`Skipped without an entry in test/expected-skips.txt: ${name}`);
  for (const name of reader.todo) problems.push(`Marked as to be done: ${name}`);
  if ((reader.counts.skipped ?? 0) > reader.skipped.length || (reader.counts.todo ?? 0) > reader.todo.length) {
    problems.push('The summary counts more skipped or unfinished tests than were seen.');
  }
  return problems;
}
