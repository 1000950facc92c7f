import assert from 'node:assert/strict';
import { test } from 'node:test';

/**
 * The items of a conformance list in one test file: each is either covered by tests that carry its id, or does not
 * apply, for a reason.
 */
export class Checklist {
  readonly #ids: readonly string[];
  readonly #covered = new Set<string>();
  readonly #exempt: Readonly<Record<string, string>>;

  /** @param exempt reason by id */
  constructor(letter: string, first: number, last: number, exempt: Readonly<Record<string, string>>) {
    this.#ids = Array.from({ length: last - first + 1 }, (_, i) => `${letter}${first + i}`);
    this.#exempt = exempt;
    test(`every item from ${letter}${first} to ${letter}${last} is covered or exempt for a reason`, () => {
      const known = new Set(this.#ids);
      for (const id of [...this.#covered, ...Object.keys(exempt)]) assert.ok(known.has(id), `${id} is on the list`);
      const open = this.#ids.filter((id) => !this.#covered.has(id) && this.#exempt[id] === undefined);
      assert.deepEqual(open, []);
      const both = this.#ids.filter((id) => this.#covered.has(id) && this.#exempt[id] !== undefined);
      assert.deepEqual(both, [], 'an exempt item has no test');
      for (const [id, reason] of Object.entries(this.#exempt)) assert.ok(reason.length > 20, `${id} has a reason`);
    });
  }

  /** @param title begins with the ids it covers, as in `V1 V2 what is so` */
  item(title: string, run: () => void | Promise<void>): void {
    const ids = /^(?:[VB]\d+ )+/.exec(title)?.[0].trim().split(' ') ?? [];
    assert.ok(ids.length > 0, `'${title}' begins with ids`);
    for (const id of ids) this.#covered.add(id);
    test(title, run);
  }
}
