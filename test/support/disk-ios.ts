import { type DiskIo, threadIo } from '../../src/bridge/backend/disk-io.ts';
import { ringIo } from '../../src/bridge/backend/ring-io.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import type { Poller } from '../../src/libc/poll.ts';

/** Both ways to an image file. Where the kernel has no io_uring, the second is the thread pool again. */
export const diskIos = (poller: Poller): readonly DiskIo[] => [
  threadIo,
  ringIo({ poller, scheduler: systemScheduler }),
];
