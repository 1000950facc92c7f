export * from './commands/observations.ts';
export { programDefinition } from './commands/program-schemas.ts';
export * from './commands/schemas.ts';
export type * from './commands/types.ts';
export { findProblem, withDefaults } from './commands/validate.ts';
export type { DataPlaneSnapshot } from './data-plane/protocol.ts';
export type { PeerIdentity } from './lane/protocol.ts';
