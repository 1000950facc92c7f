import { UserError } from '../../scripts/lib/process.mjs';

/** What the Xen image or the backends of tests need is missing outside the tree: an archive, a host tool. It says what. */
export class XenUnavailable extends UserError {}
