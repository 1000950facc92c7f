const typeBits = { directory: 0o040000, file: 0o100000, link: 0o120000, device: 0o020000 };

function hex(value) {
  return value.toString(16).toUpperCase().padStart(8, '0');
}

function padded(bytes) {
  return [bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)];
}

/**
 * Writes an archive in the `newc` format, as the kernel reads it for its first root; everything belongs to root.
 * @param {{path: string, type: 'directory' | 'file' | 'link' | 'device', mode: number, content?: Uint8Array | string,
 *   device?: [number, number]}[]} entries parents before what is in them; a link's content is its target
 */
export function writeCpio(entries) {
  const pieces = [];
  const write = (name, mode, inode, content, [major, minor]) => {
    const nameBytes = Buffer.from(`${name}\0`);
    const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, major, minor, nameBytes.length, 0];
    const header = Buffer.from(`070701${fields.map(hex).join('')}`, 'latin1');
    pieces.push(...padded(Buffer.concat([header, nameBytes])), ...padded(content));
  };
  entries.forEach(({ path, type, mode, content = '', device = [0, 0] }, i) => {
    write(path, typeBits[type] | mode, i + 1, Buffer.from(content), device);
  });
  write('TRAILER!!!', 0, 0, Buffer.alloc(0), [0, 0]);
  return Buffer.concat(pieces);
}
