import type { PeerIdentity } from '../../bridge/commands.ts';

/** Who is connected, in a table. */
export function peerText(peer: PeerIdentity | null): string {
  if (peer === null) return '-';
  return 'pid' in peer ? `pid ${peer.pid}` : `domain ${peer.domid}`;
}
