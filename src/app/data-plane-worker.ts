import { parentPort, workerData } from 'node:worker_threads';
import { type JoinWorkerData, serveJoins } from '../bridge/data-plane/serve.ts';
import { assert } from '../kit/assert.ts';
import { XenHypervisor } from '../xen/hypervisor.ts';

assert(parentPort !== null, 'this module is the entry of a Worker');
serveJoins(parentPort, workerData as JoinWorkerData, (poller) => new XenHypervisor(poller).openEventChannels());
