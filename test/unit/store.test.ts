import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { Store, type StoreState } from '../../src/bridge/store.ts';
import { nodeStoreFiles, type StoreFiles } from '../../src/bridge/store-files.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { temporaryDirectory } from '../api/support.ts';

const fileName = 'desired-state.json';
const put = (id: string, text: string) => (draft: StoreState) => {
  draft.lastRevision += 1;
  draft.objects.domains.set(id, { revision: draft.lastRevision, spec: { description: text } });
};

const valid = {
  version: 1,
  lastRevision: 3,
  domids: { vm1: 1, vm2: 2 },
  domains: { vm1: { revision: 1, spec: {} } },
  buses: { b: { revision: 2, spec: { domain: 'vm1', transport: 'loopback', role: 'driver' } } },
  backends: { disk: { revision: 3, spec: { type: 'blk', path: '/d' } } },
  attachments: {},
};

describe('store', () => {
  it('starts empty and gives back what was committed', (t) => {
    const directory = path.join(temporaryDirectory(t), 'deep', 'er');
    const store = Store.open(directory);
    assert.equal(store.state.lastRevision, 0);
    store.commit(put('vm1', 'one'));
    store.commit((draft) => {
      draft.domids.set('vm1', 5);
      draft.objects.backends.set('disk', { revision: 1, spec: { type: 'blk', path: '/d', readOnly: true } });
    });
    assert.deepEqual(Store.open(directory).state, store.state);
    assert.equal(fs.statSync(path.join(directory, fileName)).mode & 0o777, 0o600);
    assert.equal(fs.statSync(directory).mode & 0o777, 0o700);
    assert.deepEqual(fs.readdirSync(directory), [fileName]);
  });

  it('gets rid of what an interrupted write left, whatever its permissions', (t) => {
    const directory = temporaryDirectory(t);
    fs.writeFileSync(path.join(directory, `${fileName}.new`), '{"half', { mode: 0o666 });
    Store.open(directory).commit(put('vm1', 'one'));
    assert.deepEqual(fs.readdirSync(directory), [fileName]);
    assert.equal(fs.statSync(path.join(directory, fileName)).mode & 0o777, 0o600);
  });

  it('makes content and name durable, in this order', (t) => {
    const directory = temporaryDirectory(t);
    const steps: string[] = [];
    const files: StoreFiles = {
      ...nodeStoreFiles,
      write: (file, text) => {
        steps.push(`write ${path.basename(file)}`);
        nodeStoreFiles.write(file, text);
      },
      sync: (file) => {
        steps.push(`sync ${file === directory ? 'directory' : path.basename(file)}`);
        nodeStoreFiles.sync(file);
      },
      rename: (from, to) => {
        steps.push(`rename to ${path.basename(to)}`);
        nodeStoreFiles.rename(from, to);
      },
    };
    Store.open(directory, files).commit(put('vm1', 'one'));
    const next = `${fileName}.new`;
    assert.deepEqual(steps, [`write ${next}`, `sync ${next}`, `rename to ${fileName}`, 'sync directory']);
  });

  const damaged: [string, string | object, string, RegExp][] = [
    ['half a file', '{"version": 1, "last', '', /desired-state\.json is damaged/],
    ['nothing', '', '', /damaged/],
    ['not UTF-8', Buffer.from([0x7b, 0xff, 0x7d]) as never, '', /damaged/],
    ['another version', { ...valid, version: 2 }, '/version', /damaged at \/version/],
    ['an unknown field', { ...valid, extra: 1 }, '/extra', /not a known field/],
    ['a missing part', { ...valid, buses: undefined }, '/buses', /is missing/],
    [
      'a wrong spec',
      { ...valid, backends: { d: { revision: 1, spec: { type: 'blk' } } } },
      '/backends/d/spec/path',
      /is missing/,
    ],
    ['a wrong id', { ...valid, domains: { '../x': { revision: 1, spec: {} } } }, '/domains/..~1x', /does not match/],
    ['one number twice', { ...valid, domids: { vm1: 1, vm2: 1 } }, '/domids/vm2', /the number of vm1/],
    ['a number out of range', { ...valid, domids: { vm1: 0x7fef } }, '/domids/vm1', /must be <= 32750/],
    ['a revision from the future', { ...valid, lastRevision: 2 }, '/backends/disk/revision', /above 2/],
  ];
  for (const [what, content, pointer, message] of damaged) {
    it(`refuses ${what}, says where, and keeps the file`, (t) => {
      const directory = temporaryDirectory(t);
      const file = path.join(directory, fileName);
      const bytes = typeof content === 'string' || Buffer.isBuffer(content) ? content : JSON.stringify(content);
      fs.writeFileSync(file, bytes);
      assert.throws(
        () => Store.open(directory),
        (error) => {
          assert.ok(error instanceof VmsgError);
          assert.deepEqual([error.code, error.pointer], ['invalid-config', pointer]);
          assert.match(error.message, message);
          assert.ok(error.message.includes(file));
          return true;
        },
      );
      assert.deepEqual(fs.readFileSync(file), Buffer.from(bytes));
    });
  }

  it('takes a good file', (t) => {
    const directory = temporaryDirectory(t);
    fs.writeFileSync(path.join(directory, fileName), JSON.stringify(valid));
    assert.deepEqual(Store.open(directory).state.objects.buses.get('b')?.spec, valid.buses.b.spec);
  });

  it('reports a directory that cannot be used', (t) => {
    const file = path.join(temporaryDirectory(t), 'file');
    fs.writeFileSync(file, '');
    assert.throws(
      () => Store.open(path.join(file, 'below')),
      (error) => error instanceof VmsgError && error.code === 'system-call',
    );
  });
});

/** Thrown where the machine stops; nothing after it happens. */
class Crash extends Error {}

/** A disk that forgets what was not synced: content of files, and names in the one directory. */
class CrashingDisk implements StoreFiles {
  /** Operations until the machine stops or an operation fails. */
  fuse = Number.POSITIVE_INFINITY;
  /** Whether the fuse stops the machine or only makes one operation fail. */
  stops = true;
  #inodes = new Map<number, { text: string; durable: string }>();
  #names = new Map<string, number>();
  #durableNames = new Map<string, number>();
  #nextInode = 1;

  makeDirectory(): void {}

  read(file: string): Uint8Array | undefined {
    const inode = this.#names.get(file);
    return inode === undefined ? undefined : Buffer.from(this.#inodes.get(inode)?.text ?? '');
  }

  write(file: string, text: string): void {
    const inode = this.#nextInode;
    this.#nextInode += 1;
    this.#inodes.set(inode, { text: '', durable: '' });
    this.#names.set(file, inode);
    this.#burn();
    this.#inodes.set(inode, { text: text.slice(0, text.length / 2), durable: '' });
    this.#burn();
    this.#inodes.set(inode, { text, durable: '' });
  }

  sync(file: string): void {
    this.#burn();
    const inode = this.#names.get(file);
    if (inode === undefined) {
      this.#durableNames = new Map(this.#names);
      return;
    }
    const content = this.#inodes.get(inode)!;
    content.durable = content.text;
    this.#burn();
  }

  rename(from: string, to: string): void {
    this.#burn();
    this.#names.set(to, this.#names.get(from)!);
    this.#names.delete(from);
    this.#burn();
  }

  /** Starts again; of each thing that was not synced `keep` says whether it made it to the disk. */
  reboot(keep: () => boolean): void {
    for (const content of this.#inodes.values()) {
      if (!keep()) content.text = content.durable;
      content.durable = content.text;
    }
    if (!keep()) this.#names = new Map(this.#durableNames);
    this.#durableNames = new Map(this.#names);
    this.fuse = Number.POSITIVE_INFINITY;
  }

  #burn(): void {
    this.fuse -= 1;
    if (this.fuse > 0) return;
    if (!this.stops) this.fuse = Number.POSITIVE_INFINITY;
    throw this.stops ? new Crash('the machine stopped') : new Error('EIO');
  }
}

const operation = fc.record(
  {
    id: fc.constantFrom('a', 'b', 'c', 'd'),
    remove: fc.boolean(),
    /** When to crash or fail during this operation; most operations run through. */
    fuse: fc.option(fc.integer({ min: 1, max: 9 }), { nil: undefined, freq: 3 }),
    stops: fc.boolean(),
    kept: fc.array(fc.boolean(), { minLength: 40, maxLength: 40 }),
  },
  { noNullPrototype: true },
);

type Operation = { id: string; remove: boolean; fuse: number | undefined; stops: boolean; kept: boolean[] };
type Content = ReadonlyMap<string, string | undefined>;

const sorted = (content: Content): Content => new Map([...content].sort(([a], [b]) => (a < b ? -1 : 1)));

const contentOf = (store: Store): Content =>
  sorted(new Map([...store.state.objects.domains].map(([id, { spec }]) => [id, spec.description])));

/** Runs operations against a disk and checks after each what may be there. */
function runOperations(operations: readonly Operation[]): void {
  const disk = new CrashingDisk();
  let store = Store.open('/state', disk);
  /** What was acknowledged last, and what was tried since: a restart may show the one or the other. */
  let acknowledged: Content = new Map();
  let attempted: Content[] = [];
  let step = 0;
  for (const { id, remove, fuse, stops, kept } of operations) {
    step += 1;
    const wanted = new Map(acknowledged);
    if (remove) wanted.delete(id);
    else wanted.set(id, `${step}`);
    Object.assign(disk, { fuse: fuse ?? Number.POSITIVE_INFINITY, stops });
    try {
      store.commit(remove ? (draft) => void draft.objects.domains.delete(id) : put(id, `${step}`));
      acknowledged = sorted(wanted);
      attempted = [];
    } catch (error) {
      assert.ok(error instanceof VmsgError && error.code === 'system-call');
      attempted.push(sorted(wanted));
      assert.deepEqual(contentOf(store), acknowledged, 'a failed commit changes nothing here');
      if (!(error.cause instanceof Crash)) continue;
      const bits = [...kept];
      disk.reboot(() => bits.shift() ?? true);
      store = Store.open('/state', disk);
      const found = contentOf(store);
      const allowed = [acknowledged, ...attempted];
      assert.ok(
        allowed.some((content) => isSame(content, found)),
        JSON.stringify([...found]),
      );
      acknowledged = found;
      attempted = [];
    }
    disk.fuse = Number.POSITIVE_INFINITY;
    assert.deepEqual(contentOf(store), acknowledged);
  }
}

const isSame = (a: Content, b: Content): boolean => JSON.stringify([...a]) === JSON.stringify([...b]);

describe('store: crashes', () => {
  it('lose nothing acknowledged and damage nothing, wherever they fall', () => {
    fc.assert(fc.property(fc.array(operation, { minLength: 1, maxLength: 40 }), runOperations), {
      seed: 20,
      numRuns: 400,
    });
  });
});
