import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

const fileOf = (name: string): URL => new URL(`../../../${name}`, import.meta.url);

/** The version that package.json names. */
export function packageVersion(): string {
  return (JSON.parse(readFileSync(fileOf('package.json'), 'utf8')) as { version: string }).version;
}

/** The OpenAPI document, JSON. */
export function openApiDocument(): Promise<string> {
  return readFile(fileOf('api/openapi.json'), 'utf8');
}
