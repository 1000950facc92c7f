import { describe } from 'node:test';
import type { MakeBench } from '../support/hypervisor-bench.ts';
import { eventCases } from './hypervisor-events.ts';
import { grantCases } from './hypervisor-grants.ts';
import { noticeCases } from './hypervisor-notices.ts';
import { xenstoreCases } from './hypervisor-xenstore.ts';

/** What every implementation of ports/hypervisor.ts has to fulfil. */
export function hypervisorContract({ name, make }: { readonly name: string; readonly make: MakeBench }): void {
  describe(`hypervisor contract: ${name}`, () => {
    describe('grants', () => grantCases(make));
    describe('notices', () => noticeCases(make));
    describe('event channels', () => eventCases(make));
    describe('xenstore', () => xenstoreCases(make));
  });
}
