import assert from 'node:assert/strict';
import { test } from 'node:test';
import { asEventPort, asGrantRef, type EventChannel } from '../../src/ports/hypervisor.ts';
import { granted, type MakeBench, settle, until, withBench } from '../support/hypervisor-bench.ts';

const byte = 73;

/** Byte and event that tell of an end, whether it was meant or not. */
export function noticeCases(make: MakeBench): void {
  mappingCases(make);
  shareCases(make);
  killCases(make);
}

function mappingCases(make: MakeBench): void {
  test('the end of a mapping clears the byte, then tells the owner', () =>
    withBench(make, async ({ guest, service }, own) => {
      const seen: (number | undefined)[] = [];
      const page = own(own(guest.hypervisor.openGrantSharer()).share(service.domid, 1));
      const ours = own(guest.hypervisor.openEventChannels());
      const { port } = own(ours.bindUnbound(service.domid, () => seen.push(page.bytes[byte])));
      const theirs = own(service.hypervisor.openEventChannels());
      const channel = own(granted(theirs.bindInterdomain(guest.domid, port, () => {})));
      const mapper = own(service.hypervisor.openGrantMapper());
      const notice = { byte, port: channel.port };
      const mapping = own(granted(mapper.map(guest.domid, page.references, 'write', notice)));
      mapping.bytes.fill(1, 0, 200);
      await settle();
      seen.length = 0;
      mapping.close();
      await until('the event', () => seen.length > 0);
      assert.deepEqual([seen[0], page.bytes[byte - 1], page.bytes[byte + 1]], [0, 1, 1]);
    }));

  test('a notice works though its channel was closed first', () =>
    withBench(make, async ({ guest, service }, own) => {
      let events = 0;
      const page = own(own(guest.hypervisor.openGrantSharer()).share(service.domid, 1));
      const { port } = own(own(guest.hypervisor.openEventChannels()).bindUnbound(service.domid, () => events++));
      const theirs = own(service.hypervisor.openEventChannels());
      const channel = granted(theirs.bindInterdomain(guest.domid, port, () => {}));
      const mapper = own(service.hypervisor.openGrantMapper());
      const mapping = own(granted(mapper.map(guest.domid, page.references, 'write', { byte, port: channel.port })));
      mapping.bytes[byte] = 1;
      channel.close();
      await settle();
      events = 0;
      mapping.close();
      await until('the event', () => events > 0);
      assert.equal(page.bytes[byte], 0);
    }));
}

function shareCases(make: MakeBench): void {
  test('the end of a share clears the byte, then tells the one who maps it', () =>
    withBench(make, async ({ guest, service }, own) => {
      const seen: (number | undefined)[] = [];
      const ours = own(own(guest.hypervisor.openEventChannels()).bindUnbound(service.domid, () => {}));
      const sharer = own(guest.hypervisor.openGrantSharer());
      const page = own(sharer.share(service.domid, 1, { byte, port: ours.port }));
      const mapping = own(
        granted(own(service.hypervisor.openGrantMapper()).map(guest.domid, page.references, 'write')),
      );
      const theirs = own(service.hypervisor.openEventChannels());
      own(granted(theirs.bindInterdomain(guest.domid, ours.port, () => seen.push(mapping.bytes[byte]))));
      page.bytes[byte] = 1;
      await settle();
      seen.length = 0;
      page.close();
      await until('the event', () => seen.length > 0);
      assert.equal(seen[0], 0);
    }));

  test('the notice of a share of several pages is about the first; references ascend in the order of the pages', () =>
    withBench(make, async ({ guest, service }, own) => {
      const ours = own(own(guest.hypervisor.openEventChannels()).bindUnbound(service.domid, () => {}));
      const sharer = own(guest.hypervisor.openGrantSharer());
      // What is freed comes back in another order.
      for (const pages of [3, 5]) sharer.share(service.domid, pages).close();
      const pages = own(sharer.share(service.domid, 4, { byte, port: ours.port }));
      assert.deepEqual(pages.references, pages.references.slice().sort());
      for (let page = 0; page < 4; page++) pages.bytes.fill(page + 1, page * 4096, (page + 1) * 4096);
      const mapping = own(
        granted(own(service.hypervisor.openGrantMapper()).map(guest.domid, pages.references, 'write')),
      );
      assert.deepEqual(
        [0, 1, 2, 3].map((page) => mapping.bytes[page * 4096 + 7]),
        [1, 2, 3, 4],
      );
      const theirs = own(service.hypervisor.openEventChannels());
      const inPages = () => [0, 1, 2, 3].map((page) => mapping.bytes[page * 4096 + byte]).join();
      let heard = '';
      own(
        granted(
          theirs.bindInterdomain(guest.domid, ours.port, () => {
            heard = inPages();
          }),
        ),
      );
      await settle();
      pages.close();
      await until('the event', () => heard === '0,2,3,4');
    }));
}

function killCases(make: MakeBench): void {
  test('killing the process that maps does the same, and its port can be bound anew', () =>
    withBench(make, async ({ guest, service }, own) => {
      let events = 0;
      const page = own(own(guest.hypervisor.openGrantSharer()).share(service.domid, 1));
      const { port } = own(own(guest.hypervisor.openEventChannels()).bindUnbound(service.domid, () => events++));
      const victim = await service.victim();
      await victim.map(guest.domid, page.references[0]!, byte, port);
      assert.equal(page.bytes[byte], 1);
      await settle();
      events = 0;
      await victim.kill();
      await until('the event', () => events > 0);
      assert.equal(page.bytes[byte], 0);
      const theirs = own(service.hypervisor.openEventChannels());
      const again = await bindSoon(() => theirs.bindInterdomain(guest.domid, port, () => {}));
      await settle();
      events = 0;
      own(again).notify();
      await until('an event of the next process', () => events > 0);
    }));

  test('killing the process that shares does the same, and the mapping stays', () =>
    withBench(make, async ({ guest, service }, own) => {
      let events = 0;
      const victim = await guest.victim();
      const { reference, port } = await victim.share(service.domid, byte);
      const mapper = own(service.hypervisor.openGrantMapper());
      const mapping = own(granted(mapper.map(guest.domid, Uint32Array.of(asGrantRef(reference)!), 'write')));
      const theirs = own(service.hypervisor.openEventChannels());
      own(granted(theirs.bindInterdomain(guest.domid, asEventPort(port)!, () => events++)));
      assert.equal(mapping.bytes[byte], 1);
      await settle();
      events = 0;
      await victim.kill();
      await until('the event', () => events > 0);
      mapping.bytes[0] = 5;
      assert.deepEqual([mapping.bytes[byte], mapping.bytes[0]], [0, 5]);
    }));
}

/** The kernel of a process that was killed closes its ports in its own time. */
async function bindSoon(bind: () => ReturnType<typeof granted<EventChannel>> | object): Promise<EventChannel> {
  let found: EventChannel | undefined;
  await until('the port is free', () => {
    const result = bind();
    if ('notify' in result) found = result as EventChannel;
    return found !== undefined;
  });
  return found!;
}
