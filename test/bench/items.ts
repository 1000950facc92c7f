import { blockItems } from './blocks.ts';
import type { Item } from './item.ts';
import { joinedItems } from './joined.ts';
import { messageItems } from './messages.ts';
import { scaleGauges, scaleRaces } from './scale.ts';

/** Everything that is measured, in this order. */
export const items: readonly Item[] = [...messageItems, ...blockItems, ...joinedItems, ...scaleRaces, ...scaleGauges];
