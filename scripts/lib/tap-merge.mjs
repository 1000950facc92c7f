const countNames = ['tests', 'suites', 'pass', 'fail', 'cancelled', 'skipped', 'todo', 'duration_ms'];
const topLevelResult = /^(not ok|ok) \d+( - .*)?$/;
const plan = /^\d+\.\.\d+$/;
const count = new RegExp(`^# (${countNames.join('|')}) ([\\d.]+)$`);

/** Makes one TAP stream with one summary of the streams of several runs of `node --test`, one after another. */
export class TapMerger {
  #counts = Object.fromEntries(countNames.map((name) => [name, 0]));
  #points = 0;
  #rest = '';
  #begun = false;
  #inDetail = false;
  /** After a run's plan there is nothing but its summary. */
  #closing = false;

  /** @param {string} text the next piece of the current run, cut anywhere. @returns {string} what to pass on */
  push(text) {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop();
    return lines.map((line) => this.#line(line)).join('');
  }

  /** Ends a run; the next piece belongs to another one. @returns {string} what to pass on */
  endRun() {
    const text = this.#rest === '' ? '' : this.push('\n');
    this.#closing = false;
    this.#inDetail = false;
    return text;
  }

  /** @returns {string} a failed test point for something that is not a test */
  failure(name) {
    this.#counts.tests++;
    this.#counts.fail++;
    return `not ok ${++this.#points} - ${name}\n`;
  }

  /** @returns {string} the end of the merged stream */
  end() {
    const counts = countNames.map((name) => `# ${name} ${this.#counts[name]}\n`);
    return [`1..${this.#points}\n`, ...counts].join('');
  }

  #line(line) {
    if (this.#inDetail) {
      this.#inDetail = line !== '  ...';
    } else if (line === '  ---') {
      this.#inDetail = true;
    } else if (/^TAP version/.test(line)) {
      if (this.#begun) return '';
      this.#begun = true;
    } else if (plan.test(line)) {
      this.#closing = true;
      return '';
    } else if (topLevelResult.test(line)) {
      const [, word, rest = ''] = topLevelResult.exec(line);
      return `${word} ${++this.#points}${rest}\n`;
    } else if (this.#closing && count.test(line)) {
      const [, name, value] = count.exec(line);
      this.#counts[name] += Number(value);
      return '';
    }
    return `${line}\n`;
  }
}
