/**
 * Runs in a domU and reports as one line of JSON what Xen allows it with another domain.
 * `share <domid>` stays until it is killed, `map <domid> <reference> <port>` ends.
 */
import { LoopPoller } from '../../src/libc/poll.ts';
import { asDomid, asEventPort, type HypervisorFault } from '../../src/ports/hypervisor.ts';
import type { HypervisorError } from '../../src/xen/errors.ts';
import { XenHypervisor } from '../../src/xen/hypervisor.ts';

export interface ProbeShared {
  readonly reference: number;
  /** Of a port for the other domain, or why there is none. */
  readonly port: number | string;
}

export interface ProbeMapped {
  /** First byte of the page, or why it cannot be mapped. */
  readonly page: number | string;
  /** 'bound', or why it cannot be; 'none' if there is no port. */
  readonly port: string;
}

const probeByte = 42;

const [command, ...numbers] = process.argv.slice(2);
const [remote, reference, port] = numbers.map(Number);
const poller = new LoopPoller();
const xen = new XenHypervisor(poller);
const domid = asDomid(remote!)!;
const channels = xen.openEventChannels();

function share(): ProbeShared {
  const page = xen.openGrantSharer().share(domid, 1);
  page.bytes[0] = probeByte;
  try {
    return { reference: page.references[0]!, port: channels.bindUnbound(domid, () => {}).port };
  } catch (error) {
    return { reference: page.references[0]!, port: (error as HypervisorError).errno };
  }
}

function bind(): string {
  const remotePort = asEventPort(port!);
  if (remotePort === undefined) return 'none';
  const channel = channels.bindInterdomain(domid, remotePort, () => {});
  return 'notify' in channel ? 'bound' : (channel as HypervisorFault).errno;
}

function map(): ProbeMapped {
  const mapper = xen.openGrantMapper();
  const mapping = mapper.map(domid, Uint32Array.of(reference!), 'write');
  const result = { page: 'bytes' in mapping ? mapping.bytes[0]! : (mapping as HypervisorFault).errno, port: bind() };
  mapper.close();
  channels.close();
  poller.close();
  return result;
}

console.log(JSON.stringify(command === 'share' ? share() : map()));
