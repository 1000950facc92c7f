import { errorRegistry } from '../../dist/src/kit/errors.js';

const cell = (text) => text.replaceAll('|', '\\|');

function render() {
  const rows = Object.entries(errorRegistry)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([code, { status, retryable, title, help }]) =>
      [`\`${code}\``, status, retryable ? 'yes' : 'no', cell(title), cell(help)].join(' | '),
    );
  return `<!-- Generated from src/kit/errors.ts by \`npm run generate\`. -->
# Errors

Every error has a stable code. The API sends it as \`code\` of a problem document (RFC 9457), the command prints it.
*Retry* says whether the same call may succeed later without a change by the caller.

| Code | HTTP status | Retry | Title | What to check |
| --- | --- | --- | --- | --- |
${rows.map((row) => `| ${row} |\n`).join('')}`;
}

export const outputs = [{ path: 'docs/errors.md', render }];
