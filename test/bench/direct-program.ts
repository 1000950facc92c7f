import { serveCommands, workText } from './commands.ts';
import { openDirectBus } from './direct-bus.ts';
import { DiskLoad, diskMemoryBytes } from './disk-load.ts';

/** The driver of the guest library on a vhost-user back-end, without a service between: SOCKET. */
const [socket = ''] = process.argv.slice(2);
const bus = await openDirectBus(socket, diskMemoryBytes);
const disk = await DiskLoad.open(bus, 0);

await serveCommands(async ([, ...words]) => workText(await disk.run(words)));
