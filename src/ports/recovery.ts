/** Memory that outlives the process: a shared mapping of a file in the runtime directory. */
export interface RecoveryMemory {
  readonly bytes: Uint8Array;
  close(): void;
}

/** The recovery memory of one bus, by name. */
export interface RecoveryStore {
  /** Opens or creates; new memory, and memory of another size, is zero. @param length multiple of 4096 */
  open(name: string, length: number): RecoveryMemory;
  names(): string[];
  remove(name: string): void;
}
