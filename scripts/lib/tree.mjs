import { accessSync, constants, existsSync, readdirSync } from 'node:fs';
import path from 'node:path';

/** The package root. */
export const root = path.resolve(import.meta.dirname, '../..');

/** All files below `directory` of the package whose name ends with `suffix`, as sorted paths relative to the root. */
export function filesBelow(directory, suffix) {
  const absolute = path.join(root, directory);
  if (!existsSync(absolute)) return [];
  const found = [];
  for (const entry of readdirSync(absolute, { withFileTypes: true })) {
    const relative = `${directory}/${entry.name}`;
    if (entry.isDirectory()) found.push(...filesBelow(relative, suffix));
    else if (entry.name.endsWith(suffix)) found.push(relative);
  }
  return found.sort();
}

/** Whether this user may write `relative`, or create it where it does not exist. */
export function isWritable(relative) {
  const absolute = path.join(root, relative);
  try {
    accessSync(existsSync(absolute) ? absolute : root, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
