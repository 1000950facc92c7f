import type { Commands } from '../src/bridge/commands.ts';
import type { EventSource } from '../src/bridge/events.ts';
import { systemClock } from '../src/kit/clock.ts';
import { ApiState, buildServer } from './server.ts';

const never = async (): Promise<never> => {
  throw new Error('a server that only describes itself has no commands');
};

const commands: Commands = {
  put: never,
  get: never,
  list: never,
  delete: never,
  listChannels: never,
  getChannel: never,
  listRecords: never,
  listShares: never,
  getShare: never,
  readiness: () => null,
};
const events: EventSource = { subscribe: () => ({ complete: true, close: () => {} }) };

/** The OpenAPI document as a file: what the routes declare, with a line break at the end. */
export async function openApiText(version: string): Promise<string> {
  const processNumbers = () => ({ uptimeSeconds: 0, residentBytes: 0, openFds: 0 });
  const parts = { commands, events, clock: systemClock, version, instance: 'describe', processNumbers };
  const app = await buildServer(parts, new ApiState(parts));
  await app.ready();
  const text = JSON.stringify(app.swagger(), null, 2);
  await app.close();
  return `${text}\n`;
}
