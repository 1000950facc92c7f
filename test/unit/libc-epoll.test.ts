import assert from 'node:assert/strict';
import { linux } from '../../src/libc/constants.ts';
import { EpollPoller } from '../../src/libc/epoll.ts';
import { createEventfd, drainEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { type Fd, setStatusFlags, statusFlags } from '../../src/libc/fd.ts';
import { writeFrom } from '../../src/libc/native.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { SignalBatch } from '../../src/libc/signal-batch.ts';
import { eventually, runApart, runEverywhere } from './libc-harness.ts';

const full = new Uint8Array(new BigUint64Array([0xffff_ffff_ffff_fffen]).buffer);

function withPoller(run: (poller: EpollPoller) => void | Promise<void>, maxEvents = 8): () => Promise<void> {
  return async () => {
    const poller = new EpollPoller(maxEvents);
    try {
      await run(poller);
    } finally {
      poller.close();
    }
  };
}

/** Runs `run` with eventfds, and with the number that each has been called back for. */
function watched(poller: EpollPoller, count: number, edges: boolean) {
  const fds = Array.from({ length: count }, () => createEventfd());
  const calls = fds.map(() => 0);
  const watches = fds.map((fd, i) =>
    edges
      ? poller.watchEdges(fd.number, () => void calls[i]!++)
      : poller.watch(fd.number, () => {
          calls[i]!++;
          drainEventfd(fd.number);
        }),
  );
  const close = (): void => {
    for (const each of [...watches, ...fds]) each.close();
  };
  return { fds: fds as [Fd, ...Fd[]], calls, watches, close };
}

/** A counter at its maximum that blocks whoever writes to it. */
function fill(fd: Fd): void {
  assert.equal(writeFrom(fd.number, full, 8), 8);
  setStatusFlags(fd.number, statusFlags(fd.number) & ~linux.O_NONBLOCK);
}

runEverywhere(import.meta.url, {
  'an edge comes once for any number of signals, again for a later one, and nothing is read': withPoller((poller) => {
    const { fds, calls, close } = watched(poller, 1, true);
    for (let i = 0; i < 1000; i++) signalEventfd(fds[0].number);
    assert.equal(poller.dispatch(0), 1);
    assert.equal(poller.dispatch(0), 0);
    signalEventfd(fds[0].number);
    assert.equal(poller.dispatch(-1), 1);
    assert.deepEqual(calls, [2]);
    assert.equal(drainEventfd(fds[0].number), true, 'the counter is as the writer left it');
    close();
  }),
  'what was signalled before the watch is an edge': withPoller((poller) => {
    const early = createEventfd(1);
    let calls = 0;
    const watch = poller.watchEdges(early.number, () => void calls++);
    poller.dispatch(0);
    assert.equal(calls, 1);
    watch.close();
    early.close();
  }),
  'a level comes again until it is taken': withPoller((poller) => {
    const level = createEventfd(1);
    let calls = 0;
    const watch = poller.watch(level.number, () => {
      if (++calls === 3) drainEventfd(level.number);
    });
    while (poller.dispatch(0) > 0) assert.ok(calls <= 3);
    assert.equal(calls, 3);
    watch.close();
    level.close();
  }),
  'those beyond one batch come first in the next': withPoller((poller) => {
    const { fds, calls, close } = watched(poller, 5, true);
    for (const fd of fds) signalEventfd(fd.number);
    const seen: number[] = [];
    for (let round = 0; round < 3; round++) {
      signalEventfd(fds[0].number);
      poller.dispatch(0);
      seen.push(calls.filter((count) => count > 0).length);
    }
    assert.deepEqual(seen, [2, 4, 5], 'one that always fires does not keep the others waiting');
    close();
  }, 2),
  'a paused or closed watch is silent, also within the batch in which it was closed': withPoller((poller) => {
    const [a, b] = [createEventfd(1), createEventfd(1)];
    let calls = 0;
    const watches = [a, b].map((fd) =>
      poller.watchEdges(fd.number, () => {
        calls++;
        for (const watch of watches) watch.close();
        // Takes the place of one that has an event behind this one.
        poller.watch(a.number, () => assert.fail('an event of the watch before')).pause();
      }),
    );
    assert.equal(poller.dispatch(0), 2);
    assert.equal(calls, 1);
    a.close();
    b.close();
  }),
  'pause and resume; an event in between comes after': withPoller((poller) => {
    const { fds, calls, watches, close } = watched(poller, 1, true);
    watches[0]?.pause();
    signalEventfd(fds[0].number);
    assert.equal(poller.dispatch(0), 0);
    watches[0]?.resume();
    assert.equal(poller.dispatch(0), 1);
    assert.deepEqual(calls, [1]);
    close();
  }),
  'one descriptor may be watched twice, and be closed by its owner': withPoller((poller) => {
    const fd = createEventfd(1);
    let calls = 0;
    poller.watchEdges(fd.number, () => void calls++);
    poller.watchWritable(fd.number, () => void calls++);
    fd.close();
    assert.equal(poller.dispatch(0), 2);
    assert.equal(calls, 2);
  }),
  'part of another loop: readable while there is something to dispatch': withPoller(async (poller) => {
    const loop = new LoopPoller();
    const { fds, calls, close } = watched(poller, 1, true);
    const watch = loop.watch(poller.fd, () => poller.dispatch(0));
    signalEventfd(fds[0].number);
    await eventually(() => assert.deepEqual(calls, [1]));
    watch.close();
    close();
  }),
  'a batch signals each eventfd once for each time it was added, however many there are': () => {
    const batch = new SignalBatch(4);
    const fds = Array.from({ length: 9 }, () => createEventfd());
    for (const fd of fds) batch.add(fd.number);
    assert.equal(drainEventfd(fds[0]!.number), true, 'a batch that is full goes out');
    assert.equal(drainEventfd(fds[8]!.number), false);
    batch.flush();
    assert.deepEqual(
      fds.map((fd) => drainEventfd(fd.number)),
      [false, ...Array(8).fill(true)],
    );
    batch.flush();
    assert.equal(drainEventfd(fds[8]!.number), false);
    for (const each of [batch, ...fds]) each.close();
  },
  'many more signals than the kernel keeps completions for': () => {
    const batch = new SignalBatch(128);
    const fd = createEventfd();
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 1 + round * 6; i++) batch.add(fd.number);
      batch.flush();
      assert.equal(drainEventfd(fd.number), true);
    }
    batch.close();
    fd.close();
  },
  'what is no eventfd is an error': () => {
    const batch = new SignalBatch(1);
    batch.add(0x7fff_fff0);
    assert.throws(() => batch.flush(), /io_submit: EBADF/);
    batch.close();
  },
  'a full counter that blocks its writers does not block the batch, and wakes who waits for it': withPoller(
    (poller) => {
      const batch = new SignalBatch(2);
      const { fds, calls, close } = watched(poller, 2, true);
      fill(fds[0]);
      poller.dispatch(0);
      for (let i = 0; i < 3; i++) {
        for (const fd of fds) batch.add(fd.number);
        batch.flush();
        poller.dispatch(0);
      }
      assert.deepEqual(calls, [4, 3]);
      assert.equal(drainEventfd(fds[1]!.number), true);
      batch.close();
      close();
    },
  ),
  'the same with a plain write waits for ever, which is what the batch is for': () => {
    const { status } = runApart(`
      import { writeFrom } from 'libc/native';
      import { createEventfd, signalEventfd } from 'libc/eventfd';
      import { setStatusFlags, statusFlags } from 'libc/fd';
      const fd = createEventfd().number;
      writeFrom(fd, new Uint8Array([0xfe, 255, 255, 255, 255, 255, 255, 255]), 8);
      setStatusFlags(fd, statusFlags(fd) & ~0o4000);
      setTimeout(() => {}, 0);
      new (await import('node:worker_threads')).Worker("setTimeout(() => process.kill(process.pid, 'SIGKILL'), 500)", { eval: true });
      signalEventfd(fd);
      process.exit(0);
    `);
    assert.equal(status, null);
  },
});
