import { randomBytes } from 'node:crypto';
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { TokenAccess } from '../../api/access.ts';
import { listen, listenFd, listenTcp } from '../../api/listen.ts';
import { ApiState, buildServer } from '../../api/server.ts';
import type { DiskIoKind } from '../bridge/backend/disk-io.ts';
import { whyNoRing } from '../bridge/backend/ring-io.ts';
import { endLeftovers } from '../bridge/backend/vhost-user/spawn/leftovers.ts';
import { killNow } from '../bridge/backend/vhost-user/spawn/processes.ts';
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
import { XenHypervisor } from '../xen/hypervisor.ts';
import type { Config, DisksIo } from './config.ts';
import { prepareDirs } from './config-dirs.ts';
import { openToken } from './config-token.ts';
import { destroyDomain } from './destroy-domain.ts';
import { laneOptions } from './lane-options.ts';
import { openApiDocument, packageVersion } from './package-files.ts';
import { processNumbers } from './process-numbers.ts';
import { XenDomains } from './xen-domains.ts';

/** A service that answers on its API. */
export interface RunningService {
  readonly apiSocket: string;
  /** Resolves when everything is released; guests may resume at the next start. */
  stop(): Promise<void>;
}

/**
 * Composes and starts the service: the one place that knows every class.
 * @param apiFd socket of the API that somebody else listens on, instead of the one in the config
 * @throws VmsgError when a directory, the store, the API socket or another service is in the way
 */
export async function startService(config: Config, log: Logger, apiFd?: number): Promise<RunningService> {
  const uid = process.getuid?.() ?? 0;
  const scope = new Scope();
  try {
    const dirs = prepareDirs(config, uid);
    for (const dir of [config.stateDir, config.runtimeDir]) lockDirectory(dir, scope);
    await endLeftovers(dirs.programs, { clock: systemClock, log, kill: (pid) => killNow(pid, 'SIGKILL') });
    const store = Store.open(dirs.state);
    const diskIo = chooseDiskIo(config.disks.io, log);
    const lane = makeLane(config, diskIo);
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
      programs: { definitions: config.programs, directory: dirs.programs },
      destroyDomain: (domid) => destroyDomain(config.xen.xlPath, domid),
      xen: new XenDomains(new XenHypervisor(scope.own(new LoopPoller()))),
    });
    // First the API: until the buses are open it says that the service is starting.
    const closeApi = await startApi(service, config.api, uid, log, apiFd);
    const stop = async (): Promise<void> => {
      await closeApi();
      await service.stop();
      scope.close();
    };
    try {
      await service.start();
    } catch (error) {
      await stop();
      throw error;
    }
    const { socket, tcp } = config.api;
    log.info({ api: socket, tcp: tcp && `${tcp.host} port ${tcp.port}`, version: packageVersion() }, 'ready');
    return { apiSocket: config.api.socket, stop };
  } catch (error) {
    scope.close();
    throw error;
  }
}

/** @returns what closes all that listens, when calls under way are answered */
async function startApi(
  service: Service,
  { socket, socketMode, tcp }: Config['api'],
  uid: number,
  logger: Logger,
  fd: number | undefined,
): Promise<() => Promise<void>> {
  const parts = {
    commands: service,
    events: service,
    clock: systemClock,
    version: packageVersion(),
    openApi: openApiDocument,
    instance: randomBytes(4).toString('hex'),
    processNumbers,
    logger,
  };
  const state = new ApiState(parts);
  const local = await buildServer(parts, state);
  const servers = [local];
  const close = async (): Promise<void> => {
    await Promise.all(servers.map((server) => server.close()));
  };
  try {
    await (fd === undefined ? listen(local, { path: socket, mode: socketMode }) : listenFd(local, fd));
    if (tcp !== null) {
      const guarded = await buildServer(parts, state, new TokenAccess(openToken(tcp.tokenFile, uid)));
      servers.push(guarded);
      await listenTcp(guarded, tcp);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return close;
}

/** @throws VmsgError 'unavailable' when io_uring is wanted and not there */
function chooseDiskIo(wanted: DisksIo, log: Logger): DiskIoKind {
  const why = wanted === 'threads' ? 'the config says so' : whyNoRing();
  if (why !== null && wanted === 'io_uring') throw new VmsgError('unavailable', `disks.io is io_uring: ${why}`);
  const diskIo = why === null ? 'io_uring' : 'threads';
  log.info({ diskIo, ...(why === null ? {} : { reason: why }) }, 'disks');
  return diskIo;
}

function makeLane(config: Config, diskIo: DiskIoKind): Lane {
  const settings = { ...config.lane, diskIo };
  if (config.lane.mode === 'inline') {
    const poller = new LoopPoller();
    return new InlineLane((emit) => laneOptions(poller, emit, { settings }));
  }
  return new WorkerLane(new URL('./lane-worker.js', import.meta.url), settings);
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
