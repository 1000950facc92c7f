import { parentPort, workerData } from 'node:worker_threads';
import { serveLane } from '../bridge/lane/serve.ts';
import type { LaneWorkerData } from '../bridge/lane/worker-lane.ts';
import { assert } from '../kit/assert.ts';
import { LoopPoller } from '../libc/poll.ts';
import { laneOptions } from './lane-options.ts';

assert(parentPort !== null, 'this module is the entry of a Worker');
const poller = new LoopPoller();
const data = workerData as LaneWorkerData;
serveLane(parentPort, data, poller, (emit) => laneOptions(poller, emit, { settings: data.settings }));
