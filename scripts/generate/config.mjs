import { configFields } from '../../dist/src/app/config-help.js';

const cell = (text) => text.replaceAll('|', '\\|');

function render() {
  const rows = configFields().map((field) => {
    const standard = field.default ?? (field.required ? 'required' : '');
    return `| \`${field.path}\` | ${cell(field.type)} | ${cell(standard)} | ${cell(field.description)} |\n`;
  });
  return `<!-- Generated from src/app/config.ts by \`npm run generate\`. -->
# The config file

\`vmsg serve --config FILE\` reads one JSON object. Every field may be left out unless it says required; without a file
all defaults hold. A field that is unknown or wrong ends the start with status 78 and its JSON pointer. Relative paths
count from the directory of the file. Objects defined here are read-only over the API (\`config-owned\`); where a stored
object has the same id, the one of the file holds and the stored one rests until the file gives up the id.

| Field | Type | Default | Meaning |
| --- | --- | --- | --- |
${rows.join('')}
## Example

\`\`\`json
{
  "api": { "socketMode": "0600" },
  "log": { "level": "debug" },
  "domains": { "vm1": { "description": "the first guest" } },
  "buses": { "vm1": { "domain": "vm1", "transport": "loopback", "role": "driver" } },
  "backends": { "root": { "type": "blk", "path": "disk.img" }, "rng": { "type": "rng" } },
  "attachments": {
    "vm1-root": { "bus": "vm1", "backend": "root", "deviceNumber": 1 },
    "vm1-rng": { "bus": "vm1", "backend": "rng" }
  }
}
\`\`\`
`;
}

export const outputs = [{ path: 'docs/config.md', render }];
