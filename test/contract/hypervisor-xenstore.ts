import assert from 'node:assert/strict';
import { test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { asDomid, type Xenstore, type XenstoreAccess } from '../../src/ports/hypervisor.ts';
import { type HypervisorBench, type MakeBench, settle, until, withBench } from '../support/hypervisor-bench.ts';

interface Stores {
  readonly bench: HypervisorBench;
  readonly guest: Xenstore;
  readonly service: Xenstore;
  /** A directory that both may change: absolute, and as the guest may name it. */
  readonly base: string;
  readonly relative: string;
}

type WithStores = (run: (stores: Stores) => Promise<void> | void) => Promise<void>;

const hasErrno = (errno: string) => (error: unknown) =>
  (error as { code?: unknown }).code === 'hypervisor-call' && (error as { errno?: unknown }).errno === errno;

export function xenstoreCases(make: MakeBench): void {
  const withStores: WithStores = (run) =>
    withBench(make, async (bench, own) => {
      const guest = own(bench.guest.hypervisor.openXenstore());
      const service = own(bench.service.hypervisor.openXenstore());
      const relative = 'data/contract';
      const base = `/local/domain/${bench.guest.domid}/${relative}`;
      try {
        await run({ bench, guest, service, base, relative });
      } finally {
        service.remove(base);
      }
    });
  nodeCases(withStores);
  boundCases(withStores);
  transactionCases(withStores);
  watchCases(withStores);
  watchLifeCases(withStores);
}

function nodeCases(withStores: WithStores): void {
  test('nodes are written, read, listed and removed, by either name', () =>
    withStores(({ guest, service, base, relative }) => {
      guest.write(`${relative}/a/b`, 'one');
      service.write(`${base}/a/c`, '');
      guest.write(`${relative}/a/b`, 'zwei ✓');
      assert.equal(service.read(`${base}/a/b`), 'zwei ✓');
      assert.equal(guest.read(`${relative}/a/c`), '');
      assert.equal(service.read(`${base}/a`), '');
      assert.deepEqual(guest.directory(`${relative}/a`)?.sort(), ['b', 'c']);
      assert.deepEqual(service.directory(`${base}/a/b`), []);
      service.remove(`${base}/a`);
      assert.equal(guest.read(`${relative}/a/b`), undefined);
      assert.equal(guest.directory(`${relative}/a`), undefined);
      assert.equal(service.permissions(`${base}/a`), undefined);
    }));

  test('what does not exist is undefined, and can be removed', () =>
    withStores(({ service, base }) => {
      service.write(base, '');
      assert.equal(service.read(`${base}/none`), undefined);
      assert.equal(service.directory(`${base}/none/below`), undefined);
      service.remove(`${base}/none`);
      assert.throws(
        () => service.setPermissions(`${base}/none`, [{ domid: asDomid(0)!, access: 'none' }]),
        hasErrno('ENOENT'),
      );
    }));

  test('permissions are kept as they were set', () =>
    withStores(({ service, base, bench }) => {
      service.write(`${base}/p`, 'x');
      const permissions = [
        { domid: bench.service.domid, access: 'none' },
        { domid: asDomid(3)!, access: 'read' },
        { domid: asDomid(4)!, access: 'write' },
        { domid: asDomid(5)!, access: 'both' },
      ] as const;
      service.setPermissions(`${base}/p`, permissions);
      assert.deepEqual(service.permissions(`${base}/p`), permissions);
      const guestOwned = [{ domid: bench.guest.domid, access: 'read' }] as const;
      service.setPermissions(`${base}/p`, guestOwned);
      assert.deepEqual(service.permissions(`${base}/p`), guestOwned);
      const nobody = [{ domid: asDomid(0x7000)!, access: 'none' }] as const;
      assert.throws(() => service.setPermissions(`${base}/p`, nobody), hasErrno('ENOENT'));
    }));
}

function boundCases(withStores: WithStores): void {
  test('long values and long listings arrive whole, what is too long is refused', () =>
    withStores(({ service, base }) => {
      const value = 'x'.repeat(3000);
      service.write(`${base}/long`, value);
      assert.equal(service.read(`${base}/long`), value);
      assert.throws(() => service.write(`${base}/long`, 'x'.repeat(limits.xenstoreValueMaxBytes)), hasErrno('E2BIG'));
      assert.equal(service.read(`${base}/long`), value);
      const names = Array.from({ length: 300 }, (_, i) => `a-name-of-some-length-${i}`);
      for (const name of names) service.write(`${base}/many/${name}`, '');
      assert.deepEqual(new Set(service.directory(`${base}/many`)), new Set(names));
    }));

  test('illegal paths are refused, whatever the call', () =>
    withStores(({ service, base }) => {
      const illegal = [
        '',
        '//',
        `${base}//a`,
        `${base}/a/`,
        `${base}/a b`,
        `${base}/ä`,
        `${base}/a\0b`,
        `/${'x'.repeat(4000)}`,
      ];
      const owner = [{ domid: asDomid(0)!, access: 'none' }] as const;
      for (const path of illegal) {
        const calls: (() => unknown)[] = [
          () => service.read(path),
          () => service.write(path, ''),
          () => service.directory(path),
          () => service.remove(path),
          () => service.permissions(path),
          () => service.setPermissions(path, owner),
          () => service.watch(path, () => {}),
        ];
        for (const call of calls) assert.throws(call, hasErrno('EINVAL'), JSON.stringify(path.slice(0, 40)));
      }
    }));

  test('it is known which domains are introduced', () =>
    withStores(({ service, bench }) => {
      assert.equal(service.isIntroduced(bench.guest.domid), true);
      assert.equal(service.isIntroduced(bench.service.domid), true);
      assert.equal(service.isIntroduced(asDomid(0x7000)!), false);
    }));
}

function transactionCases(withStores: WithStores): void {
  test('a transaction shows nothing before its end, and everything then', () =>
    withStores(({ guest, service, base, relative }) => {
      service.write(`${base}/old`, '1');
      const result = service.transaction((inside) => {
        inside.write(`${base}/x/y`, '2');
        inside.remove(`${base}/old`);
        assert.equal(inside.read(`${base}/x/y`), '2');
        assert.deepEqual(inside.directory(base), ['x']);
        assert.equal(guest.read(`${relative}/x/y`), undefined);
        assert.equal(guest.read(`${relative}/old`), '1');
        return 'done';
      });
      assert.equal(result, 'done');
      assert.deepEqual([guest.read(`${relative}/x/y`), guest.read(`${relative}/old`)], ['2', undefined]);
    }));

  test('an exception aborts it', () =>
    withStores(({ service, base }) => {
      const failure = new Error('as planned');
      const body = (inside: XenstoreAccess): void => {
        inside.write(`${base}/never`, '1');
        throw failure;
      };
      assert.throws(() => service.transaction(body), failure);
      assert.equal(service.read(`${base}/never`), undefined);
      service.write(`${base}/later`, '1');
      assert.equal(service.read(`${base}/later`), '1');
    }));

  test('when somebody interferes it runs again', () =>
    withStores(({ guest, service, base, relative }) => {
      service.write(`${base}/count`, '0');
      let runs = 0;
      service.transaction((inside) => {
        const count = Number(inside.read(`${base}/count`));
        if (++runs <= 3) guest.write(`${relative}/count`, String(count + 10));
        inside.write(`${base}/count`, String(count + 1));
      });
      assert.equal(runs, 4);
      assert.equal(service.read(`${base}/count`), '31');
    }));

  test('when somebody always interferes it gives up', () =>
    withStores(({ guest, service, base, relative }) => {
      service.write(`${base}/count`, '0');
      let runs = 0;
      const body = (inside: XenstoreAccess): void => {
        inside.read(`${base}/count`);
        guest.write(`${relative}/count`, String(++runs));
        inside.write(`${base}/count`, 'mine');
      };
      assert.throws(() => service.transaction(body), hasErrno('EAGAIN'));
      assert.equal(runs, limits.xenstoreTransactionTries);
      assert.equal(service.read(`${base}/count`), String(runs));
    }));
}

function watchCases(withStores: WithStores): void {
  test('a watch tells of its node and those below, right away and never from within a call', () =>
    withStores(async ({ guest, service, base }) => {
      const seen: string[] = [];
      service.write(`${base}/w`, '');
      service.write(`${base}/ww`, '');
      const watch = service.watch(`${base}/w`, (path) => seen.push(path));
      assert.equal(seen.length, 0);
      await until('the first event', () => seen.length > 0);
      const first = seen.splice(0);
      assert.deepEqual(first, [`${base}/w`]);
      guest.write(`${base}/w/a/b`, '1');
      service.write(`${base}/ww/a`, '1');
      service.remove(`${base}/w/a`);
      await until('a removal', () => seen.includes(`${base}/w/a`));
      service.write(`${base}/w`, 'end');
      await until('the last event', () => seen.includes(`${base}/w`));
      assert.deepEqual(
        seen.filter((path) => path.includes('/ww')),
        [],
      );
      assert.equal(seen[0], `${base}/w/a/b`);
      watch.close();
      watch.close();
      seen.length = 0;
      service.write(`${base}/w/a`, '1');
      await settle();
      assert.deepEqual(seen, []);
    }));

  test('a node may be watched before it exists, and its end is told when a parent is removed', () =>
    withStores(async ({ service, base }) => {
      const seen: string[] = [];
      const watch = service.watch(`${base}/p/q`, (path) => seen.push(path));
      await until('the first event', () => seen.length > 0);
      service.write(`${base}/p/q`, '1');
      await until('its creation', () => seen.length > 1);
      service.remove(`${base}/p`);
      await until('its end', () => seen.length > 2);
      assert.ok(seen.every((path) => path === `${base}/p/q`));
      watch.close();
    }));

  test('paths come back the way the watch named its own', () =>
    withStores(async ({ guest, service, base, relative }) => {
      const seen: string[] = [];
      const watch = guest.watch(relative, (path) => seen.push(path));
      service.write(`${base}/r`, '1');
      await until('the change', () => seen.includes(`${relative}/r`));
      watch.close();
    }));
}

function watchLifeCases(withStores: WithStores): void {
  test('two watches of one node are two, and one may close the other', () =>
    withStores(async ({ service, base }) => {
      let [one, other] = [0, 0];
      const first = service.watch(base, () => one++);
      const second = service.watch(base, () => other++);
      await until('the first events', () => one > 0 && other > 0);
      second.close();
      await settle();
      [one, other] = [0, 0];
      service.write(`${base}/n`, '1');
      await until('the change', () => one > 0);
      await settle();
      assert.equal(other, 0);
      first.close();
    }));

  test('a transaction tells of its changes once it is done', () =>
    withStores(async ({ guest, service, base }) => {
      const seen: string[] = [];
      const watch = guest.watch(base, (path) => seen.push(path));
      await until('the first event', () => seen.length > 0);
      seen.length = 0;
      service.transaction((inside) => inside.write(`${base}/t`, '1'));
      await until('the change', () => seen.includes(`${base}/t`));
      watch.close();
    }));

  test('domains that come and go can be watched', () =>
    withStores(async ({ service }) => {
      const seen: string[] = [];
      const watches = ['@introduceDomain', '@releaseDomain'].map((path) =>
        service.watch(path, (told) => seen.push(told)),
      );
      await until('both first events', () => seen.length >= 2);
      assert.deepEqual(new Set(seen), new Set(['@introduceDomain', '@releaseDomain']));
      for (const watch of watches) watch.close();
    }));

  test('closing the connection ends its watches and every other use', () =>
    withStores(async ({ guest, service, base }) => {
      let events = 0;
      const watch = guest.watch(base, () => events++);
      guest.close();
      service.write(`${base}/x`, '1');
      await settle();
      assert.equal(events, 0);
      watch.close();
      const calls: (() => unknown)[] = [
        () => guest.read(base),
        () => guest.write(base, ''),
        () => guest.remove(base),
        () => guest.permissions(base),
        () => guest.transaction(() => {}),
        () => guest.watch(base, () => {}),
        () => guest.isIntroduced(asDomid(0)!),
      ];
      for (const call of calls) assert.throws(call, hasErrno('EBADF'));
    }));
}
