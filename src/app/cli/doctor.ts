import { parseArgs } from 'node:util';
import { toErrorData } from '../../kit/errors.ts';
import { loadConfig } from '../config.ts';
import { type Finding, fine, note, type Role, roles } from '../doctor/finding.ts';
import { directoryFindings, diskFindings, hostFindings } from '../doctor/host.ts';
import { type Machine, thisMachine } from '../doctor/machine.ts';
import { xenFindings, xenKind } from '../doctor/xen.ts';
import { surroundings } from '../serve.ts';
import { ApiClient } from './api-client.ts';
import { apiTarget } from './api-target.ts';
import { exitCode, usageError } from './exit-codes.ts';
import { type CliIo, resolvePath } from './io.ts';

const roleOf = (machine: Machine): Role =>
  (({ none: 'service', guest: 'xen-guest', control: 'xen-service' }) as const)[xenKind(machine)];

const titles: Readonly<Record<Role, string>> = {
  service: 'a service without Xen',
  'xen-service': 'a service for Xen domains',
  'xen-guest': 'a guest of a service in another Xen domain',
};

/**
 * `vmsg doctor`: says in sentences what is there, what is missing and how to get it.
 * @returns 0 when everything that the role needs is there
 */
export async function runDoctor(args: string[], io: CliIo, machine: Machine = thisMachine()): Promise<number> {
  const { api, rest } = apiTarget(args, io);
  const { values } = parseArgs({
    args: rest,
    options: { json: { type: 'boolean' }, role: { type: 'string' }, config: { type: 'string' } },
  });
  const role = roles.find((name) => name === (values.role ?? roleOf(machine)));
  if (role === undefined) throw usageError(`--role takes ${roles.join(', ')}, not '${values.role}'`);
  const config = loadConfig(values.config === undefined ? undefined : resolvePath(io, values.config), surroundings(io));
  const findings = [
    ...hostFindings(machine),
    ...diskFindings(machine, config, role),
    ...directoryFindings(machine, config, role),
    ...xenFindings(machine, role),
    ...(role === 'xen-guest'
      ? []
      : [await apiFinding(values.config === undefined ? api : new ApiClient(config.api.socket))]),
  ];
  const ok = findings.every(({ state }) => state !== 'missing');
  io.stdout.write(values.json ? `${JSON.stringify({ role, ok, findings }, null, 2)}\n` : report(role, ok, findings));
  return ok ? exitCode.ok : exitCode.failed;
}

/** A service need not run yet. */
async function apiFinding(api: ApiClient): Promise<Finding> {
  try {
    await api.call('GET', '/readyz');
    return fine('api', 'A service answers and is ready.');
  } catch (error) {
    return note('api', `No service is ready: ${toErrorData(error).message}`);
  }
}

const marks = { fine: 'ok  ', note: 'note', missing: 'FAIL' } as const;

function report(role: Role, ok: boolean, findings: readonly Finding[]): string {
  const lines = findings.flatMap(({ state, text, fix }) => [
    `${marks[state]}  ${text}`,
    ...(fix === null ? [] : [`      ${fix}`]),
  ]);
  const end = ok ? `This machine can be ${titles[role]}.` : `This machine cannot be ${titles[role]} yet.`;
  return `${[...lines, '', end].join('\n')}\n`;
}
