import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { BlkBackend, openBlk } from '../../src/bridge/backend/blk.ts';
import { openRng } from '../../src/bridge/backend/rng.ts';
import { ShmBackend } from '../../src/bridge/backend/shm.ts';
import { TemplateBackend } from '../../src/bridge/backend/template.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { census } from '../../src/libc/census.ts';
import { MemoryDisk } from '../support/bridge-disk.ts';
import { CountingRandom } from '../support/bridge-fakes.ts';
import { backendContract } from './backend-contract.ts';

const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-contract-'));
const before = census();
after(() => rmSync(directory, { recursive: true }));

const image = path.join(directory, 'image');
writeFileSync(image, new Uint8Array(100_001).fill(5));
const host = { configChanged: () => assert.fail('no change'), failed: (reason: string) => assert.fail(reason) };

/** A disk in memory that waits for its operations before it closes, as a file does. */
class PatientDisk extends MemoryDisk {
  override async close(): Promise<void> {
    while (this.log.filter((line) => !/ (done|failed)$/.test(line)).length * 2 > this.log.length) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    await super.close();
  }
}

backendContract('blk on memory', async () => new BlkBackend(new PatientDisk(100_001), 'serial'));
backendContract('blk on memory, read-only', async () => new BlkBackend(new PatientDisk(1, true), 'serial'));
backendContract('blk on a file', () => openBlk({ path: image, readOnly: false, serial: 'file' }, host, systemClock));
backendContract('blk on a file, read-only', () =>
  openBlk({ path: image, readOnly: true, serial: 'file' }, host, systemClock),
);
backendContract('blk on memory, 16 queues', async () => new BlkBackend(new PatientDisk(8192), '', { queues: 16 }));
backendContract('shm', async () => new ShmBackend(65536));
backendContract('template', async () => new TemplateBackend('Hello'));
backendContract('rng', () => openRng({ source: '/dev/urandom' }, new CountingRandom(), host));
backendContract('rng on a device', () => openRng({ source: '/dev/zero' }, new CountingRandom(), host));

test('after all of them nothing is open', () => assert.deepEqual(census(), before));
