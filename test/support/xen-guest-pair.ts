import type { ProbeMapped, ProbeShared } from './xen-guest-probe.ts';

interface Guest {
  readonly domid: number;
  start(command: string): Promise<{ onLine(listener: (line: string) => void): void; kill(): Promise<void> }>;
  run(command: string): Promise<{ output: string }>;
}

const program = 'node dist/test/support/xen-guest-probe.js';

/** One domU shares a page and a port with the other, which tries to use them. */
export async function probeGuests(one: Guest, two: Guest): Promise<{ shared: ProbeShared; mapped: ProbeMapped }> {
  const sharing = await one.start(`${program} share ${two.domid}`);
  const line = await new Promise<string>((resolve) => sharing.onLine(resolve));
  const shared = JSON.parse(line) as ProbeShared;
  const { output } = await two.run(`${program} map ${one.domid} ${shared.reference} ${shared.port}`);
  await sharing.kill();
  return { shared, mapped: JSON.parse(output) as ProbeMapped };
}
