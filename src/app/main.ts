#!/usr/bin/env node
import { runCommand } from './cli/command.ts';
import { processIo } from './cli/io.ts';

// A reader such as `head` may leave early; that is not an error of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
process.exitCode = await runCommand(process.argv.slice(2), processIo());
