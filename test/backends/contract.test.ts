import { netFeature } from '../support/net-guest.ts';
import { programContract } from './contract.ts';
import {
  builtInDisk,
  qcow2StorageDaemon,
  rawStorageDaemon,
  sharedDirectory,
  sockets,
  userModeNetwork,
} from './subjects.ts';

programContract('the built-in disk', builtInDisk);
programContract('qemu-storage-daemon, raw', rawStorageDaemon);
programContract('qemu-storage-daemon, qcow2', qcow2StorageDaemon);
programContract('virtiofsd', sharedDirectory);
programContract('passt', (directory) => userModeNetwork(directory, [netFeature.MRG_RXBUF]));
programContract('passt, a driver without merged buffers', (directory) => userModeNetwork(directory, []));
programContract('vhost-device-vsock', sockets);
