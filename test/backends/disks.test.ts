import { programContract } from './contract.ts';
import { builtInDisk, qcow2StorageDaemon, rawStorageDaemon } from './subjects.ts';

programContract('the built-in disk', builtInDisk);
programContract('qemu-storage-daemon, raw', rawStorageDaemon);
programContract('qemu-storage-daemon, qcow2', qcow2StorageDaemon);
