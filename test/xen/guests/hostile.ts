import { orderOf, say } from './bus.ts';
import { type Attack, attacks, type Sight } from './hostile-attacks.ts';
import { HostileFrontend, ownDomid, until } from './hostile-frontend.ts';

/** Attacks its service in the way that the node `data/attack` of its domain names, until that names another one. */
export interface HostileOrder {
  /** Device number of a disk of this domain. */
  readonly disk: number;
  /** Number of another domain. */
  readonly neighbour: number;
}

export type HostileLine = {
  /** The attack was carried out, or goes on from now on. */
  readonly type: 'attacked';
  readonly attack: string;
  /** Messages that it has put into rings. */
  readonly messages: number;
} & Sight;

const order = orderOf<HostileOrder>();
const domid = ownDomid();
const frontends: HostileFrontend[] = [];
const control = new HostileFrontend(domid).raw.xenstore;
let wanted = '';
control.watch('data/attack', () => {
  wanted = control.read('data/attack') ?? '';
});

function make(): HostileFrontend {
  const frontend = new HostileFrontend(domid);
  frontends.push(frontend);
  return frontend;
}

for (let last = ''; ; ) {
  await until('an order', () => wanted !== last, Number.POSITIVE_INFINITY);
  last = wanted;
  for (const frontend of frontends.splice(0)) frontend.close();
  const [name = ''] = last.split(':');
  if (name === 'end') break;
  const attack: Attack = attacks[name]!;
  await attack({
    ...order,
    make,
    lasts: () => wanted === last,
    say: (sight) => {
      const messages = frontends.reduce((sum, { raw }) => sum + raw.posted, 0);
      say({ type: 'attacked', attack: last, messages, ...sight } satisfies HostileLine);
    },
  });
}
process.exit(0);
