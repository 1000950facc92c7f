import { closeSync, openSync, readSync } from 'node:fs';
import { extname } from 'node:path';
import { usageError } from './exit-codes.ts';

/** What image files begin with; the names of the formats are QEMU's. */
const magics: readonly { readonly format: string; readonly at: number; readonly bytes: string }[] = [
  { format: 'qcow2', at: 0, bytes: 'QFI\xfb' },
  { format: 'qed', at: 0, bytes: 'QED\0' },
  { format: 'vmdk', at: 0, bytes: 'KDMV' },
  { format: 'vmdk', at: 0, bytes: '# Disk DescriptorFile' },
  { format: 'vhdx', at: 0, bytes: 'vhdxfile' },
  { format: 'vpc', at: 0, bytes: 'conectix' },
  { format: 'vdi', at: 64, bytes: '\x7f\x10\xda\xbe' },
];
const headBytes = 128;

const extensions: Readonly<Record<string, string>> = {
  '.qcow2': 'qcow2',
  '.qed': 'qed',
  '.vmdk': 'vmdk',
  '.vhdx': 'vhdx',
  '.vhd': 'vpc',
  '.vdi': 'vdi',
};

function headOf(path: string): string {
  const head = Buffer.alloc(headBytes);
  try {
    const fd = openSync(path, 'r');
    try {
      return head.subarray(0, readSync(fd, head, 0, headBytes, 0)).toString('latin1');
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw usageError(`${path} cannot be read to see its format (${(error as Error).message}): say --format`);
  }
}

/**
 * The format of an image file, where its name and its first bytes say the same. A guest can write what it likes to the
 * beginning of a raw disk, so that its bytes alone must not decide: other formats name further files.
 * @throws CliError when they disagree, or the file cannot be read
 */
export function guessFormat(path: string): string {
  const head = headOf(path);
  const content = magics.find(({ at, bytes }) => head.startsWith(bytes, at))?.format ?? 'raw';
  const name = extensions[extname(path).toLowerCase()] ?? 'raw';
  if (content === name) return content;
  throw usageError(`${path} looks like ${content} by its content and like ${name} by its name: say --format`);
}
