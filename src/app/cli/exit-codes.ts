/** Exit codes of the command, after sysexits(3) where it has one. */
export const exitCode = {
  ok: 0,
  /** The service refused, or something failed that has no code of its own. */
  failed: 1,
  usage: 64,
  dataMismatch: 65,
  unavailable: 69,
  ioError: 74,
  config: 78,
} as const;

/** Ends a command with one sentence on stderr. */
export class CliError extends Error {
  readonly exitCode: number;

  constructor(code: number, message: string) {
    super(message);
    this.exitCode = code;
  }
}

export const usageError = (message: string): CliError => new CliError(exitCode.usage, message);
