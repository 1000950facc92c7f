import { netFeature } from '../support/net-guest.ts';
import { programContract } from './contract.ts';
import { sharedDirectory, sockets, userModeNetwork } from './subjects.ts';

programContract('virtiofsd', sharedDirectory);
programContract('passt', (directory) => userModeNetwork(directory, [netFeature.MRG_RXBUF]));
programContract('passt, a driver without merged buffers', (directory) => userModeNetwork(directory, []));
programContract('vhost-device-vsock', sockets);
