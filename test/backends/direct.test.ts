import { programContract } from './contract.ts';
import { spawnedDirectory, spawnedDisk, spawnedNetwork, spawnedSockets } from './subjects.ts';

for (const path of ['direct', 'shadow'] as const) {
  programContract(`qemu-storage-daemon, started by the service, ${path}`, spawnedDisk(path));
  programContract(`virtiofsd, started by the service, ${path}`, spawnedDirectory(path));
  programContract(`passt, started by the service, ${path}`, spawnedNetwork(path));
  programContract(`vhost-device-vsock, started by the service, ${path}`, spawnedSockets(path));
}
