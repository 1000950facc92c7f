import { resolve } from 'node:path';

/** Where a command reads and writes; tests give their own. */
export interface CliIo {
  readonly stdout: { write(text: string | Uint8Array): unknown };
  readonly stderr: { write(text: string): unknown };
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
}

export const processIo = (): CliIo => ({
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  // npm runs scripts in the package root; the user's paths are relative to where npm was called.
  cwd: process.env.INIT_CWD ?? process.cwd(),
});

export const resolvePath = (io: CliIo, path: string): string => resolve(io.cwd, path);
