import { randomBytes } from 'node:crypto';
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { listen } from '../../api/listen.ts';
import { buildServer } from '../../api/server.ts';
import { InlineLane } from '../bridge/lane/inline.ts';
import type { Lane } from '../bridge/lane/protocol.ts';
import { WorkerLane } from '../bridge/lane/worker-lane.ts';
import { Service } from '../bridge/service.ts';
import { Store } from '../bridge/store.ts';
import { systemClock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { Scope } from '../kit/scope.ts';
import { tryLock } from '../libc/flock.ts';
import { LoopPoller } from '../libc/poll.ts';
import type { Config } from './config.ts';
import { prepareDirs } from './config-dirs.ts';
import { laneOptions } from './lane-options.ts';
import { packageVersion } from './version.ts';

/** A service that answers on its API. */
export interface RunningService {
  readonly apiSocket: string;
  /** Resolves when everything is released; guests may resume at the next start. */
  stop(): Promise<void>;
}

/**
 * Composes and starts the service: the one place that knows every class.
 * @throws VmsgError when a directory, the store, the API socket or another service is in the way
 */
export async function startService(config: Config, log: Logger): Promise<RunningService> {
  const uid = process.getuid?.() ?? 0;
  const scope = new Scope();
  try {
    const dirs = prepareDirs(config, uid);
    for (const dir of [config.stateDir, config.runtimeDir]) lockDirectory(dir, scope);
    const store = Store.open(dirs.state);
    const lane = makeLane(config);
    scope.defer(() => lane.close());
    const service = new Service({
      lane,
      store,
      clock: systemClock,
      wallMs: Date.now,
      log,
      configured: config.objects,
      busDir: dirs.buses,
      recoveryDir: dirs.recovery,
      uid,
    });
    const app = await buildServer({
      commands: service,
      events: service,
      clock: systemClock,
      version: packageVersion(),
      instance: randomBytes(4).toString('hex'),
      logger: log,
    });
    // First the API: until the buses are open it says that the service is starting.
    await listen(app, { path: config.api.socket, mode: config.api.socketMode });
    const stop = async (): Promise<void> => {
      await app.close();
      await service.stop();
      scope.close();
    };
    try {
      await service.start();
    } catch (error) {
      await stop();
      throw error;
    }
    log.info({ api: config.api.socket, version: packageVersion() }, 'ready');
    return { apiSocket: config.api.socket, stop };
  } catch (error) {
    scope.close();
    throw error;
  }
}

function makeLane(config: Config): Lane {
  if (config.lane.mode === 'inline') return new InlineLane((emit) => laneOptions(new LoopPoller(), emit));
  return new WorkerLane(new URL('./lane-worker.js', import.meta.url));
}

/** One service a directory: two would serve the same guests. The lock ends with the process. */
function lockDirectory(directory: string, scope: Scope): void {
  const path = join(directory, 'lock');
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
  scope.defer(() => closeSync(fd));
  if (!tryLock(fd, 'exclusive')) {
    throw new VmsgError('in-use', `another service uses ${directory}; end it or choose other directories`);
  }
}
