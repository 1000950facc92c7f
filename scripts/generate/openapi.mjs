import { readFileSync } from 'node:fs';
import { openApiText } from '../../dist/api/openapi.js';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));

export const outputs = [{ path: 'api/openapi.json', render: () => openApiText(version) }];
