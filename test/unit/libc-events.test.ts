import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';

import { test } from 'node:test';
import { isMainThread, Worker } from 'node:worker_threads';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import { createEventfd, drainEventfd, drainEventfdPolled, isEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import type { Fd } from '../../src/libc/fd.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { Messenger } from '../../src/libc/messenger.ts';
import { fcntl } from '../../src/libc/native.ts';
import { LoopPoller, type Watch } from '../../src/libc/poll.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { difference, eventually, runApart, runEverywhere } from './libc-harness.ts';

const poller = new LoopPoller();

/** Long enough for every callback that is due. */
const turns = async (): Promise<void> => {
  for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve));
};

runEverywhere(import.meta.url, {
  'an eventfd counts, drains and is recognised'() {
    const fd = createEventfd();
    assert.equal(fcntl(fd.number, linux.F_GETFD, 'int', 0), linux.FD_CLOEXEC);
    for (const drain of [drainEventfd, drainEventfdPolled]) {
      assert.equal(drain(fd.number), false);
      signalEventfd(fd.number);
      signalEventfd(fd.number);
      assert.equal(drain(fd.number), true);
      assert.equal(drain(fd.number), false);
    }
    assert.equal(isEventfd(fd.number), true);
    const memory = createMemfd('anon_inode:[eventfd]', 8);
    assert.equal(isEventfd(memory.number), false);
    assert.equal(isEventfd(1_000_000), false);
    const preset = createEventfd(3);
    assert.equal(drainEventfd(preset.number), true);
    for (const each of [fd, memory, preset]) each.close();
  },

  'errors of an eventfd are system call errors'() {
    assert.throws(() => drainEventfd(1_000_000), { call: 'preadv2(eventfd)', errnoName: 'EBADF' });
    assert.throws(() => signalEventfd(1_000_000), { call: 'write(eventfd)', errnoName: 'EBADF' });
  },

  'a watch calls for as long as there is something to read'() {
    return withEventfd(async (fd) => {
      let calls = 0;
      const watch = poller.watch(fd.number, (disconnected) => {
        calls += 1;
        assert.equal(disconnected, false);
        if (calls === 3) drainEventfd(fd.number);
      });
      await turns();
      assert.equal(calls, 0);
      signalEventfd(fd.number);
      await eventually(() => assert.equal(calls, 3));
      await turns();
      assert.equal(calls, 3);
      watch.close();
    });
  },

  'a paused watch is silent until it is resumed'() {
    return withEventfd(async (fd) => {
      let calls = 0;
      const watch: Watch = poller.watch(fd.number, () => {
        calls += 1;
        watch.pause();
      });
      signalEventfd(fd.number);
      await eventually(() => assert.equal(calls, 1));
      await turns();
      assert.equal(calls, 1);
      watch.resume();
      watch.resume();
      await eventually(() => assert.equal(calls, 2));
      watch.pause();
      watch.close();
      watch.resume();
      watch.pause();
      await turns();
      assert.equal(calls, 2);
    });
  },

  'a watch closes inside its own callback and is never called again'() {
    return withEventfd(async (fd) => {
      const before = census();
      let calls = 0;
      const watch: Watch = poller.watch(fd.number, () => {
        calls += 1;
        watch.close();
        watch.close();
      });
      signalEventfd(fd.number);
      await eventually(() => assert.equal(calls, 1));
      await turns();
      assert.equal(calls, 1);
      assert.equal(difference(before, census(), 'eventfd'), 0);
    });
  },

  'a watch that another callback of the same round closes is not called'() {
    return withEventfd(async (one) => {
      const two = createEventfd();
      const called: string[] = [];
      const watches: Watch[] = [];
      for (const [name, fd] of [
        ['one', one],
        ['two', two],
      ] as const) {
        const watch = poller.watch(fd.number, () => {
          called.push(name);
          for (const each of watches) each.close();
        });
        watches.push(watch);
      }
      signalEventfd(one.number);
      signalEventfd(two.number);
      await eventually(() => assert.equal(called.length, 1));
      await turns();
      assert.equal(called.length, 1);
      two.close();
    });
  },

  'one descriptor may be watched twice, and its number may be reused after close'() {
    return withEventfd(async (fd) => {
      let calls = 0;
      const watches = [0, 1].map(() =>
        poller.watch(fd.number, () => {
          calls += 1;
        }),
      );
      signalEventfd(fd.number);
      await eventually(() => assert(calls >= 4));
      watches[0]?.close();
      const so = calls;
      await eventually(() => assert(calls > so));
      watches[1]?.close();
      const again = createEventfd(1);
      let heard = false;
      const watch: Watch = poller.watch(again.number, () => {
        heard = true;
        watch.close();
      });
      await eventually(() => assert(heard));
      again.close();
    });
  },

  'promises that a callback settles go on at once'() {
    return withEventfd(async (fd) => {
      const order: string[] = [];
      const watch: Watch = poller.watch(fd.number, () => {
        order.push('callback');
        if (order.length > 3) watch.close();
        Promise.resolve().then(
          () => order.push('promise'),
          () => {},
        );
      });
      signalEventfd(fd.number);
      await eventually(() => assert.deepEqual(order.slice(0, 4), ['callback', 'promise', 'callback', 'promise']));
      watch.close();
    });
  },

  async 'a peer that closes is reported, also when it leaves unread data behind'() {
    for (const unread of [false, true]) {
      const [here, there] = socketPair();
      if (unread) assert.equal(ringDoorbell(here.number), true);
      const seen: boolean[] = [];
      const watch = poller.watch(here.number, (disconnected) => {
        seen.push(disconnected);
        if (seen.length < 3) return;
        // Level-triggered: it is reported until somebody acts.
        assert.equal(drainDoorbell(here.number, 4), 'closed');
        watch.close();
      });
      await turns();
      assert.deepEqual(seen, []);
      there.close();
      await eventually(() => assert.deepEqual(seen, [true, true, true]));
      here.close();
    }
  },

  async 'room to write is reported'() {
    const [here, there] = socketPair('stream');
    const chunk = 4096;
    let calls = 0;
    const filler = new Messenger(chunk, 0);
    while (typeof filler.sendSome(here.number, new Uint8Array(chunk)) === 'number');
    const watch: Watch = poller.watchWritable(here.number, (disconnected) => {
      assert.equal(disconnected, false);
      calls += 1;
      watch.close();
    });
    await turns();
    assert.equal(calls, 0);
    while (filler.receive(there.number) !== 'empty');
    await eventually(() => assert.equal(calls, 1));
    for (const each of [filler, here, there]) each.close();
  },

  'a closed poller has closed its watches'() {
    return withEventfd(async (fd) => {
      const before = census();
      const own = new LoopPoller();
      let calls = 0;
      const watch = own.watch(fd.number, () => {
        calls += 1;
        own.close();
      });
      own.watch(fd.number, () => {
        calls += 1;
      });
      signalEventfd(fd.number);
      await eventually(() => assert(calls > 0));
      const so = calls;
      await turns();
      assert.equal(calls, so);
      watch.close();
      assert.throws(() => own.watch(fd.number, () => {}), /invariant broken/);
      assert.deepEqual(census(), before);
    });
  },

  'what cannot be waited for is refused and nothing leaks'() {
    const before = census();
    const file = openSync('/proc/self/exe', 'r');
    for (const number of [file, file]) {
      assert.throws(() => poller.watch(number, () => {}), { call: 'epoll_ctl', errnoName: 'EPERM' });
    }
    closeSync(file);
    assert.throws(() => poller.watch(1_000_000, () => {}), { errnoName: 'EBADF' });
    assert.deepEqual(census(), before);
  },
});

async function withEventfd(run: (fd: Fd) => Promise<void>): Promise<void> {
  const fd = createEventfd();
  try {
    await run(fd);
  } finally {
    fd.close();
  }
}

if (isMainThread) {
  for (const drain of ['drainEventfd', 'drainEventfdPolled']) {
    test(`${drain} does not wait when a peer has cleared O_NONBLOCK`, () => {
      const { output, status } = runApart(`
        import { createEventfd, ${drain} as drain, signalEventfd } from 'libc/eventfd';
        import { setStatusFlags, statusFlags } from 'libc/fd';
        const fd = createEventfd();
        setStatusFlags(fd.number, statusFlags(fd.number) & ~${linux.O_NONBLOCK});
        console.log(drain(fd.number));
        signalEventfd(fd.number);
        console.log(drain(fd.number), drain(fd.number), statusFlags(fd.number) & ${linux.O_NONBLOCK});
      `);
      assert.equal(output, 'false\ntrue false 0\n');
      assert.equal(status, 0);
    });
  }

  test('a callback that throws is an uncaught exception, and later callbacks still come', () => {
    const { output, status } = runApart(`
      import { createEventfd, drainEventfd } from 'libc/eventfd';
      import { LoopPoller } from 'libc/poll';
      process.on('uncaughtException', (error) => console.log('uncaught', error.message));
      const fd = createEventfd(1);
      const poller = new LoopPoller();
      let calls = 0;
      const watch = poller.watch(fd.number, () => {
        calls += 1;
        if (calls === 1) throw new Error('first');
        if (calls < 5) return;
        watch.close();
        console.log('done');
      });
      const other = poller.watch(createEventfd(1).number, () => { other.close(); console.log('other'); });
    `);
    assert.deepEqual(output.split('\n').sort(), ['', 'done', 'other', 'uncaught first']);
    assert.equal(status, 0);
  });

  test('a watch that nobody refers to survives the collector', () => {
    const { output, status } = runApart(`
      import { setFlagsFromString } from 'node:v8';
      import { runInNewContext } from 'node:vm';
      import { createEventfd, drainEventfd, signalEventfd } from 'libc/eventfd';
      import { LoopPoller } from 'libc/poll';
      setFlagsFromString('--expose-gc');
      const collect = runInNewContext('gc');
      const fd = createEventfd();
      (() => { new LoopPoller().watch(fd.number, () => { drainEventfd(fd.number); console.log('heard'); process.exit(0); }); })();
      setTimeout(() => { collect(); collect(); setTimeout(() => signalEventfd(fd.number), 10); }, 10);
      setTimeout(() => process.exit(3), 5000);
    `);
    assert.equal(output, 'heard\n');
    assert.equal(status, 0);
  });

  for (const [how, ready, ending, outcome] of [
    ['exits', true, 'process.exit(7);', 'ended 7'],
    ['exits in a callback', true, 'poller.watch(createEventfd(1).number, () => process.exit(7));', 'ended 7'],
    ['throws', true, "setImmediate(() => { throw new Error('gone'); });", 'error gone\nended 1'],
    ['closes its poller and is terminated', true, 'poller.close(); setInterval(() => {}, 1000); stop();', 'ended 1'],
    ['is terminated while nothing is ready', false, 'stop();', 'ended 1'],
  ] as const) {
    test(`a Worker that ${how} takes nothing with it`, () => {
      const { output, status } = runApart(`
        import 'libc/poll';
        import { Worker } from 'node:worker_threads';
        const worker = new Worker(\`
          const { parentPort } = require('node:worker_threads');
          Promise.all([import('libc/eventfd'), import('libc/poll'), import('libc/unix-socket')]).then(
            ([{ createEventfd }, { LoopPoller }, { socketPair }]) => {
              const stop = () => parentPort.postMessage('stop');
              const poller = new LoopPoller();
              const [here, there] = socketPair();
              poller.watch(here.number, () => {});
              if (${ready}) {
                there.close();
                poller.watchWritable(here.number, () => {});
                for (const count of [1, 1]) poller.watch(createEventfd(count).number, () => {});
              }
              poller.watch(createEventfd(1).number, () => {}).pause();
              poller.watch(createEventfd(1).number, () => {}).close();
              ${ending}
            },
          );
        \`, { eval: true, execArgv: [] });
        worker.on('error', (error) => console.log('error', error.message));
        worker.on('exit', (code) => console.log('ended', code));
        worker.on('message', () => worker.terminate());
      `);
      assert.equal(output, `${outcome}\n`);
      assert.equal(status, 0);
    });
  }

  test('the process exits while a watch is ready', () => {
    const { output, status } = runApart(`
      import { createEventfd } from 'libc/eventfd';
      import { LoopPoller } from 'libc/poll';
      const fd = createEventfd(1);
      new LoopPoller().watch(fd.number, () => {});
      new LoopPoller().watch(fd.number, () => process.exit(5));
    `);
    assert.equal(output, '');
    assert.equal(status, 5);
  });

  test('an eventfd made here is drained in a Worker', async () => {
    const fd = createEventfd(1);
    const source =
      new URL('../../src/libc/eventfd', import.meta.url).href + (import.meta.url.endsWith('.ts') ? '.ts' : '.js');
    const worker = new Worker(
      `import(${JSON.stringify(source)}).then(({ drainEventfd }) => require('node:worker_threads').parentPort.postMessage(drainEventfd(${fd.number})));`,
      { eval: true },
    );
    const drained = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    assert.equal(drained, true);
    assert.equal(drainEventfd(fd.number), false);
    fd.close();
  });
}
