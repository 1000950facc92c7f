import { createWriteStream } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { XenUnavailable } from './errors.mjs';

const attempts = 3;
const retryPauseMs = 1000;
const silenceLimitMs = 30_000;
const redirectLimit = 5;
const parallelDownloads = 6;

/** The server says that there is no such file. */
export class NotFound extends XenUnavailable {}

function proxyFor(url, env) {
  const proxy = url.protocol === 'http:' ? env.http_proxy : undefined;
  const excluded = (env.no_proxy ?? '').split(',').map((name) => name.trim().replace(/^\./, ''));
  const isExcluded = excluded.some(
    (name) => name !== '' && (url.hostname === name || url.hostname.endsWith(`.${name}`)),
  );
  return proxy && !isExcluded ? new URL(proxy) : undefined;
}

function openOnce(url) {
  return new Promise((resolve, reject) => {
    const proxy = proxyFor(url, process.env);
    const request = proxy
      ? http.get({ host: proxy.hostname, port: proxy.port || 80, path: url.href, headers: { host: url.host } })
      : (url.protocol === 'https:' ? https : http).get(url);
    request.setTimeout(silenceLimitMs, () => request.destroy(new Error(`no answer for ${silenceLimitMs / 1000} s`)));
    request.once('response', resolve);
    request.once('error', reject);
  });
}

async function open(address) {
  let url = new URL(address);
  for (let redirects = 0; redirects <= redirectLimit; redirects++) {
    const response = await openOnce(url);
    const { statusCode, headers } = response;
    if (statusCode === 200) return response;
    response.destroy();
    if (statusCode === 404 || statusCode === 410) throw new NotFound(`${url.href} does not exist`);
    if (statusCode < 300 || statusCode >= 400 || headers.location === undefined) {
      throw new Error(`status ${statusCode}`);
    }
    url = new URL(headers.location, url);
  }
  throw new Error(`more than ${redirectLimit} redirections`);
}

/**
 * Downloads one file, again after a failure that may pass.
 * @param {(bytes: number) => void} [onBytes] is told of progress; negative when an attempt starts anew
 */
export async function download(address, file, onBytes = () => {}) {
  for (let attempt = 1; ; attempt++) {
    let received = 0;
    try {
      const response = await open(address);
      response.on('data', (bytes) => {
        received += bytes.length;
        onBytes(bytes.length);
      });
      await pipeline(response, createWriteStream(file));
      return;
    } catch (error) {
      if (error instanceof NotFound) throw error;
      onBytes(-received);
      if (attempt === attempts) {
        throw new XenUnavailable(`${address} cannot be downloaded: ${error.message || error.code}`);
      }
      await sleep(retryPauseMs * attempt);
    }
  }
}

/** Runs `work` for every item, a few at a time; the first failure ends the rest. */
export async function inParallel(items, work) {
  const results = [];
  const pending = items.entries();
  const worker = async () => {
    for (const [index, item] of pending) results[index] = await work(item);
  };
  await Promise.all(Array.from({ length: parallelDownloads }, worker));
  return results;
}

const barWidth = 24;

/** A progress bar on a terminal, a line at the beginning and at the end elsewhere; silent when nothing was received. */
export class ProgressBar {
  #received = 0;
  #drawnAt = 0;
  #started = false;

  constructor(label, totalBytes, stream = process.stderr) {
    this.label = label;
    this.totalBytes = totalBytes;
    this.stream = stream;
    this.start = performance.now();
  }

  add(bytes) {
    this.#received += bytes;
    if (!this.#started && !this.stream.isTTY) this.stream.write(`${this.label} (${megabytes(this.totalBytes)}) … `);
    this.#started = true;
    if (!this.stream.isTTY || performance.now() - this.#drawnAt < 100) return;
    this.#drawnAt = performance.now();
    this.#draw('');
  }

  #draw(end) {
    const done = Math.min(1, this.#received / Math.max(1, this.totalBytes));
    const bar = '#'.repeat(Math.round(done * barWidth)).padEnd(barWidth, '.');
    const seconds = ((performance.now() - this.start) / 1000).toFixed(1);
    this.stream.write(
      `\r${this.label} [${bar}] ${megabytes(this.#received)} of ${megabytes(this.totalBytes)}, ${seconds} s ${end}`,
    );
  }

  end() {
    if (!this.#started) return;
    if (this.stream.isTTY) this.#draw('\n');
    else this.stream.write(`${((performance.now() - this.start) / 1000).toFixed(1)} s\n`);
  }
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
