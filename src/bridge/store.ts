import path from 'node:path';
import Type, { type Static } from 'typebox';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { findProblem, idPattern, type Kind, type Kinds, kindSchemas, kinds } from './commands.ts';
import { nodeStoreFiles, type StoreFiles } from './store-files.ts';

export interface StoredObject<K extends Kind = Kind> {
  readonly revision: number;
  readonly spec: Kinds[K]['spec'];
}

/** Desired state that outlives the service. Objects of the config file are not in it. */
export interface StoreState {
  /** The highest revision ever given; revisions are not used again. */
  lastRevision: number;
  /** Number of each domain, those of the config file included. */
  readonly domids: Map<string, number>;
  readonly objects: { readonly [K in Kind]: Map<string, StoredObject<K>> };
}

const version = 1;
const idKey = Type.String({ pattern: idPattern });
const strict = { additionalProperties: false } as const;
const revisionSchema = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

const stored = <T extends Type.TSchema>(spec: T) =>
  Type.Record(idKey, Type.Object({ revision: revisionSchema, spec }, strict), strict);

const fileSchema = Type.Object(
  {
    version: Type.Literal(version),
    lastRevision: revisionSchema,
    domids: Type.Record(idKey, Type.Integer({ minimum: 1, maximum: limits.loopbackDomidMax }), strict),
    domains: stored(kindSchemas.domains.spec),
    buses: stored(kindSchemas.buses.spec),
    backends: stored(kindSchemas.backends.spec),
    attachments: stored(kindSchemas.attachments.spec),
  },
  strict,
);
type StoreFile = Static<typeof fileSchema>;

/**
 * Desired state as one JSON file. Every change writes a complete new file, makes it durable, renames it over the
 * old one and makes the name durable, so that a crash leaves either the old state or the new one.
 */
export class Store {
  readonly #directory: string;
  readonly #files: StoreFiles;
  #state: StoreState;

  private constructor(directory: string, files: StoreFiles, state: StoreState) {
    this.#directory = directory;
    this.#files = files;
    this.#state = state;
  }

  /**
   * Reads `desired-state.json` in `directory`. A damaged file is reported and left as it is.
   * @throws VmsgError `invalid-config` with the JSON pointer of what is wrong, `system-call`
   */
  static open(directory: string, files: StoreFiles = nodeStoreFiles): Store {
    const file = fileIn(directory);
    const bytes = attempt(`read ${file}`, () => {
      files.makeDirectory(directory);
      return files.read(file);
    });
    return new Store(directory, files, bytes === undefined ? emptyState() : parse(file, bytes));
  }

  /** Not to be changed by the caller. */
  get state(): StoreState {
    return this.#state;
  }

  /**
   * Applies `change` to a copy of the state. On return the new state is durable. When it throws, the old state stands
   * here; on disk either of them, until the next successful commit.
   * @throws VmsgError `system-call`
   */
  commit(change: (draft: StoreState) => void): void {
    const draft = copy(this.#state);
    change(draft);
    const text = serialise(draft);
    const file = fileIn(this.#directory);
    const next = `${file}.new`;
    attempt(`write ${file}`, () => {
      this.#files.write(next, text);
      this.#files.sync(next);
      this.#files.rename(next, file);
      this.#files.sync(this.#directory);
    });
    this.#state = draft;
  }
}

const fileIn = (directory: string): string => path.join(directory, 'desired-state.json');

function attempt<T>(what: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw new VmsgError('system-call', `${what}: ${(error as Error).message}`, { cause: error });
  }
}

function emptyState(): StoreState {
  return {
    lastRevision: 0,
    domids: new Map(),
    objects: { domains: new Map(), buses: new Map(), backends: new Map(), attachments: new Map() },
  };
}

function copy(state: StoreState): StoreState {
  const { domains, buses, backends, attachments } = state.objects;
  return {
    lastRevision: state.lastRevision,
    domids: new Map(state.domids),
    objects: {
      domains: new Map(domains),
      buses: new Map(buses),
      backends: new Map(backends),
      attachments: new Map(attachments),
    },
  };
}

function serialise(state: StoreState): string {
  const content = {
    version,
    lastRevision: state.lastRevision,
    domids: Object.fromEntries(state.domids),
    ...Object.fromEntries(kinds.map((kind) => [kind, Object.fromEntries(state.objects[kind])])),
  };
  return `${JSON.stringify(content, null, 1)}\n`;
}

function parse(file: string, bytes: Uint8Array): StoreState {
  const damaged = (pointer: string, message: string) =>
    new VmsgError('invalid-config', `${file} is damaged${pointer === '' ? '' : ` at ${pointer}`}: ${message}`, {
      pointer,
    });
  let content: unknown;
  try {
    content = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw damaged('', (error as Error).message);
  }
  const problem = findProblem(fileSchema, content);
  if (problem !== null) throw damaged(problem.pointer, problem.message);
  const { lastRevision, domids, ...objects } = content as StoreFile;
  const owners = new Map<number, string>();
  for (const [id, domid] of Object.entries(domids)) {
    const owner = owners.get(domid);
    if (owner !== undefined) throw damaged(`/domids/${id}`, `${domid} is the number of ${owner} too`);
    owners.set(domid, id);
  }
  for (const kind of kinds) {
    for (const [id, { revision }] of Object.entries(objects[kind])) {
      if (revision > lastRevision) throw damaged(`/${kind}/${id}/revision`, `is above ${lastRevision}`);
    }
  }
  return {
    lastRevision,
    domids: new Map(Object.entries(domids)),
    objects: {
      domains: new Map(Object.entries(objects.domains)),
      buses: new Map(Object.entries(objects.buses)),
      backends: new Map(Object.entries(objects.backends)),
      attachments: new Map(Object.entries(objects.attachments)),
    },
  };
}
