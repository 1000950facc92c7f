import { UserError } from '../../scripts/lib/process.mjs';

/** Something outside the tree is missing that the Xen image needs: an archive, a host tool. The message says what. */
export class XenUnavailable extends UserError {}
