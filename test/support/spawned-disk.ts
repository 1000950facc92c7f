import { spawn } from 'node:child_process';
import { LoopPoller } from '../../src/libc/poll.ts';
import { openMessenger } from '../../src/vhost-user/socket.ts';
import { VhostUserPeer } from './vhost-user-peer.ts';
import { RamDisk } from './vhost-user-ram-disk.ts';

/**
 * A program with a disk in memory, for services that start programs. It finds its socket in its arguments, as one of its
 * own or in an option of qemu-storage-daemon, and has a child that ignores SIGTERM.
 */
const socket = process.argv.map((argument) => /(?:^|addr\.path=)(\/[^,]*\/s)$/.exec(argument)?.[1]).find(Boolean);
if (socket === undefined) {
  process.stderr.write('no socket among the arguments\n');
  process.exit(3);
}
spawn('sh', ['-c', 'trap "" TERM; sleep 1000'], { stdio: 'inherit' });
const poller = new LoopPoller();
new VhostUserPeer(socket, new RamDisk(poller), poller, openMessenger()).listen();
