import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TemplateBackend } from '../../src/bridge/backend/template.ts';
import { limits } from '../../src/kit/limits.ts';
import { readU32 } from '../../src/wire/bytes.ts';
import { run, split, TestRequest } from '../support/bridge-request.ts';

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const bytes = (value: string): Uint8Array => new TextEncoder().encode(value);

test('template: greets the name of a request, wherever its bytes lie', async () => {
  const backend = new TemplateBackend('Good morning');
  const request = new TestRequest(split(bytes('Jürgen'), 2, 1), [5, 0, 100]);
  const written = await run(backend, request);
  assert.equal(text(request.written().subarray(0, written)), 'Good morning, Jürgen!');
});

test('template: an answer without room is cut, a name that is too long has none', async () => {
  const backend = new TemplateBackend('Hello');
  const short = new TestRequest([bytes('World')], [6]);
  assert.equal(await run(backend, short), 6);
  assert.equal(text(short.written()), 'Hello,');
  const textMaxBytes = readU32(backend.description.config, 0);
  assert.equal(textMaxBytes, limits.templateTextMaxBytes);
  assert.equal(await run(backend, new TestRequest([new Uint8Array(textMaxBytes)], [4096])), textMaxBytes + 8);
  assert.equal(await run(backend, new TestRequest([new Uint8Array(textMaxBytes + 1)], [4096])), 0);
});
