import { execFile } from 'node:child_process';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';

/** `xl destroy`: ends a Xen domain at once. @throws VmsgError `system-call` with what the command says */
export function destroyDomain(xlPath: string, domid: number): Promise<void> {
  const options = { timeout: limits.domainDestroyTimeoutMs, killSignal: 'SIGKILL' } as const;
  return new Promise((resolve, reject) => {
    execFile(xlPath, ['destroy', String(domid)], options, (error, _stdout, stderr) => {
      if (error === null) resolve();
      else reject(new VmsgError('system-call', `${xlPath} destroy ${domid}: ${stderr.trim() || error.message}`));
    });
  });
}
