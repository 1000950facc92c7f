import type { IncomingMessage } from 'node:http';
import { limits } from '../../kit/limits.ts';
import { http } from '../../kit/node-http.ts';
import { CliError, exitCode } from './exit-codes.ts';

export interface ApiAnswer {
  readonly status: number;
  readonly body: unknown;
}

/** Where a service listens on TCP, and what it wants to see there. */
export interface TcpTarget {
  readonly host: string;
  readonly port: number;
  readonly token: string;
}

/** Calls the API of a service on its Unix socket, or on TCP. */
export class ApiClient {
  readonly #target: string | TcpTarget;

  /** @param target path of the socket, or where it is on TCP */
  constructor(target: string | TcpTarget) {
    this.#target = target;
  }

  /** @throws CliError with what the service says, or that it does not answer */
  async call(method: 'GET' | 'PUT' | 'DELETE', path: string, body?: unknown): Promise<ApiAnswer> {
    const { status, text } = await this.#answer(method, path, body);
    return { status, body: text === '' ? null : JSON.parse(text) };
  }

  /** An answer that is not JSON. @throws CliError */
  async text(path: string): Promise<string> {
    return (await this.#answer('GET', path)).text;
  }

  async #answer(method: string, path: string, body?: unknown): Promise<{ status: number; text: string }> {
    const response = await this.#open(method, path, body);
    // A service that ends may leave half an answer.
    const text = await readAll(response).catch((error) => Promise.reject(this.#unreachable(error)));
    const status = response.statusCode ?? 0;
    if (status >= 400) throw new CliError(exitCode.failed, problemText(text, status));
    return { status, text };
  }

  /** All items of a collection below /v1, page by page. */
  async listAll<T>(collection: string): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | number | null = null;
    do {
      const query: string = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
      const { body } = await this.call('GET', `/v1/${collection}?limit=${limits.apiPageMaxItems}${query}`);
      const page = body as { items: T[]; next: string | number | null };
      items.push(...page.items);
      cursor = page.next;
    } while (cursor !== null);
    return items;
  }

  /** Server-sent events, one `data` value at a time, until the service ends the stream. */
  async *events(): AsyncGenerator<unknown> {
    const response = await this.#open('GET', '/v1/events');
    const status = response.statusCode ?? 0;
    if (status >= 400) throw new CliError(exitCode.failed, problemText(await readAll(response), status));
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
      const content =
        text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
      const target = this.#target;
      const isSocket = typeof target === 'string';
      const where = isSocket ? { socketPath: target } : { host: target.host, port: target.port };
      const headers = isSocket ? content : { ...content, authorization: `Bearer ${target.token}` };
      const outgoing = http.request({ ...where, method, path, headers }, resolve);
      outgoing.on('error', (error: NodeJS.ErrnoException) => reject(this.#unreachable(error)));
      outgoing.end(text);
    });
  }

  #unreachable(error: NodeJS.ErrnoException): CliError {
    const target = this.#target;
    const name = typeof target === 'string' ? target : `${target.host} port ${target.port}`;
    const why =
      error.code === 'ENOENT' || error.code === 'ECONNREFUSED'
        ? 'no service answers there; start one with "vmsg serve" or say with --api where it is'
        : error.code === 'EACCES'
          ? 'permission denied'
          : error.message;
    return new CliError(exitCode.unavailable, `${name}: ${why}`);
  }
}

async function readAll(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8');
  let text = '';
  for await (const chunk of response) text += String(chunk);
  return text;
}

/** problem+json as one sentence. */
function problemText(text: string, status: number): string {
  const problem = parsed(text) as { title?: string; detail?: string; code?: string; pointer?: string };
  const where = problem.pointer === undefined ? '' : ` (${problem.pointer})`;
  return `${problem.title ?? `HTTP status ${status}`}: ${problem.detail ?? 'no detail'}${where} [${problem.code ?? status}]`;
}

function parsed(text: string): object {
  try {
    return (JSON.parse(text) as object | null) ?? {};
  } catch {
    return {};
  }
}
