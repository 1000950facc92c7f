import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/**
 * Empties an ArrayBuffer, so that every view of it has length 0 from now on.
 * @returns false when this runtime cannot
 */
export type Detach = (buffer: ArrayBuffer) => boolean;

type Transfer = (this: ArrayBuffer, length: number) => ArrayBuffer;

/** Node 20 has ArrayBuffer.prototype.transfer only in contexts that are made while a V8 flag is set. */
function obtainTransfer(): Transfer | undefined {
  const own = (ArrayBuffer.prototype as { transfer?: Transfer }).transfer;
  if (own !== undefined) return own;
  setFlagsFromString('--harmony-rab-gsab-transfer');
  try {
    return runInNewContext('ArrayBuffer.prototype.transfer') as Transfer | undefined;
  } finally {
    setFlagsFromString('--no-harmony-rab-gsab-transfer');
  }
}

const transfer = obtainTransfer();

export const detach: Detach = (buffer) => {
  if (transfer === undefined) return false;
  try {
    transfer.call(buffer, 0);
  } catch {
    return false;
  }
  return buffer.byteLength === 0;
};
