import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { GuestRegions } from '../../src/bridge/backend/vhost-user/direct/regions.ts';
import { LoopbackResources } from '../../src/device/loopback-resources.ts';
import { fdLink } from '../../src/libc/fd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';

describe('the regions of a guest', () => {
  test('stay open for the program when the guest has taken them back', () => {
    const poller = new LoopPoller();
    const resources = new LoopbackResources(
      poller,
      () => {},
      () => false,
    );
    const regions = new GuestRegions();
    const file = createMemfd('vmsg-region', 8192);
    const name = fdLink(file.number);
    const { number } = file;
    assert.equal(resources.add(0, [file]), undefined);
    const memory = resources.openRegion(0, 4096n, 4096n, false);
    assert.ok(typeof memory !== 'string');
    const added = regions.add({ area: 5, readOnly: false, memory });
    assert.ok(typeof added !== 'string');
    const { handle, ...rest } = added;
    const address = 5n << 48n;
    assert.deepEqual(rest, { guestAddress: address, userAddress: address, size: 4096n });
    memory.close();
    // Another file gets the number of the guest's descriptor.
    const other = createMemfd('vmsg-other', 4096);
    assert.equal(other.number, number);
    assert.deepEqual(regions.all, [added]);
    assert.equal(regions.take(5), added);
    assert.deepEqual(regions.all, []);
    const handed = handle.open();
    assert.ok(typeof handed !== 'string');
    assert.deepEqual([handed.offset, fdLink(handed.fd)], [4096n, name]);
    Mapping.map(handed.fd, 4096, 4096, { writable: true }).close();
    handed.close();
    handle.close();
    assert.equal(fdLink(handed.fd), undefined);
    assert.equal(regions.take(5), undefined);
    other.close();
    resources.close();
    poller.close();
  });

  test('say what a program cannot have for as long as it is shared', () => {
    const regions = new GuestRegions();
    const memory = { bytes: new Uint8Array(4096), close: () => {} };
    assert.equal(regions.problem, undefined);
    assert.equal(regions.add({ area: 1, readOnly: true, memory }), 'area 1 of the guest is read-only');
    assert.match(`${regions.add({ area: 2, readOnly: false, memory })}`, /area 2 of the guest cannot be passed on/);
    const foreign = { domid: 7, reference: 1, length: 4096n };
    assert.equal(regions.add({ area: 3, readOnly: false, foreign }), 'area 3 of the guest is for domain 7');
    assert.deepEqual(regions.all, []);
    assert.match(regions.problem ?? '', /area 1/);
    for (const number of [1, 2]) assert.equal(regions.take(number), undefined);
    assert.match(regions.problem ?? '', /area 3/);
    regions.take(3);
    assert.equal(regions.problem, undefined);
    let open = 0;
    const handle = () => {
      open += 1;
      const close = (): void => {
        open -= 1;
      };
      return { open: () => 'EIO' as const, close };
    };
    regions.add({ area: 4, readOnly: false, memory: { ...memory, handle } });
    assert.equal(open, 1);
    regions.close();
    assert.deepEqual([regions.all, open], [[], 0]);
  });
});
