import { VmsgError } from '../kit/errors.ts';

/** What a failed call was about, for the message. */
export interface CallSubject {
  readonly domid?: number;
  /** Grant reference or port. */
  readonly reference?: number;
  /** References or ports from that one on, default 1. */
  readonly count?: number;
  /** Anything else: a path, a size. */
  readonly what?: string;
}

/** A call of the hypervisor, of its devices or of xenstored failed, and no guest's claim was the reason. */
export class HypervisorError extends VmsgError {
  readonly call: string;
  /** For example 'ENOENT'. */
  readonly errno: string;
  readonly domid: number | undefined;
  readonly reference: number | undefined;

  /** @param hint what to check, a sentence */
  constructor(call: string, errno: string, subject: CallSubject = {}, hint?: string) {
    super('hypervisor-call', `${describeCall(call, subject)}: ${errno}${hint === undefined ? '' : `. ${hint}`}`);
    this.name = 'HypervisorError';
    this.call = call;
    this.errno = errno;
    this.domid = subject.domid;
    this.reference = subject.reference;
  }
}

function describeCall(call: string, { domid, reference, count = 1, what }: CallSubject): string {
  const parts = [call];
  if (what !== undefined) parts.push(what);
  if (domid !== undefined) parts.push(`domain ${domid}`);
  if (reference !== undefined)
    parts.push(count > 1 ? `${count} references from ${reference}` : `reference ${reference}`);
  return parts.join(' ');
}
