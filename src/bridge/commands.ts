export * from './commands/schemas.ts';
export type * from './commands/types.ts';
export { findProblem, type SchemaProblem, withDefaults } from './commands/validate.ts';
export type { ChannelCounters, PeerIdentity } from './lane/protocol.ts';
