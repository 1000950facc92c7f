import { type IncomingMessage, request } from 'node:http';
import { limits } from '../../kit/limits.ts';
import { CliError, exitCode } from './exit-codes.ts';

export interface ApiAnswer {
  readonly status: number;
  readonly body: unknown;
}

/** Calls the API of a service on its Unix socket. */
export class ApiClient {
  readonly #socketPath: string;

  constructor(socketPath: string) {
    this.#socketPath = socketPath;
  }

  /** @throws CliError with what the service says, or that it does not answer */
  async call(method: 'GET' | 'PUT' | 'DELETE', path: string, body?: unknown): Promise<ApiAnswer> {
    const response = await this.#open(method, path, body);
    const text = await readAll(response);
    const value: unknown = text === '' ? null : JSON.parse(text);
    const status = response.statusCode ?? 0;
    if (status >= 400) throw new CliError(exitCode.failed, problemText(value, status));
    return { status, body: value };
  }

  /** All objects of a collection, page by page. */
  async listAll<T>(kind: string): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | null = null;
    do {
      const query: string = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
      const { body } = await this.call('GET', `/v1/${kind}?limit=${limits.apiPageMaxItems}${query}`);
      const page = body as { items: T[]; next: string | null };
      items.push(...page.items);
      cursor = page.next;
    } while (cursor !== null);
    return items;
  }

  /** Server-sent events, one `data` value at a time, until the service ends the stream. */
  async *events(): AsyncGenerator<unknown> {
    const response = await this.#open('GET', '/v1/events');
    response.setEncoding('utf8');
    let rest = '';
    for await (const chunk of response) {
      const blocks = (rest + String(chunk)).split('\n\n');
      rest = blocks.pop() ?? '';
      for (const block of blocks) {
        const data = block.split('\n').filter((line) => line.startsWith('data:'));
        if (data.length > 0) yield JSON.parse(data.map((line) => line.slice(5)).join('\n'));
      }
    }
  }

  #open(method: string, path: string, body?: unknown): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const headers =
        text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
      const outgoing = request({ socketPath: this.#socketPath, method, path, headers }, resolve);
      outgoing.on('error', (error: NodeJS.ErrnoException) => reject(this.#unreachable(error)));
      outgoing.end(text);
    });
  }

  #unreachable(error: NodeJS.ErrnoException): CliError {
    const why =
      error.code === 'ENOENT' || error.code === 'ECONNREFUSED'
        ? 'no service answers there; start one with "vmsg serve" or name its socket with --api'
        : error.code === 'EACCES'
          ? 'permission denied'
          : error.message;
    return new CliError(exitCode.unavailable, `${this.#socketPath}: ${why}`);
  }
}

async function readAll(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8');
  let text = '';
  for await (const chunk of response) text += String(chunk);
  return text;
}

/** problem+json as one sentence. */
function problemText(body: unknown, status: number): string {
  const problem = (body ?? {}) as { title?: string; detail?: string; code?: string; pointer?: string };
  const where = problem.pointer === undefined ? '' : ` (${problem.pointer})`;
  return `${problem.title ?? `HTTP status ${status}`}: ${problem.detail ?? 'no detail'}${where} [${problem.code ?? status}]`;
}
