#!/usr/bin/env node
import { exitCode } from './cli/exit-codes.ts';
import { processIo } from './cli/io.ts';

/** The rest needs packages and the system's libraries, and a person should read a sentence when they are not there. */
async function loadCommand(): Promise<typeof import('./cli/command.ts') | undefined> {
  try {
    return await import('./cli/command.ts');
  } catch (error) {
    const [reason] = (error as Error).message.split('\n');
    process.stderr.write(
      `vmsg: a part cannot be loaded: ${reason}. Install the package anew, for example with npm ci.\n`,
    );
    return undefined;
  }
}

// A reader such as `head` may leave early; that is not an error of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
const command = await loadCommand();
process.exitCode =
  command === undefined ? exitCode.unavailable : await command.runCommand(process.argv.slice(2), processIo());
