/**
 * A region's grant references, in pages that are granted as well (docs/protocol/xen-bus.md, "Pools"): word 0 of a page is
 * the reference of the next page or 0, words 1 to 1023 are references of the region's pages in order, 0 where unused.
 */
const wordsPerPage = 1024;
const entriesPerPage = wordsPerPage - 1;

/** Directory pages that a region of this many pages needs. */
export const directoryPages = (pages: number): number => Math.ceil(pages / entriesPerPage);

/**
 * Writes the references of a region into its directory.
 * @param words of all directory pages side by side, zeroed
 * @param own grant references of the directory pages
 */
export function writeDirectory(words: Uint32Array, own: Uint32Array, references: Uint32Array): void {
  for (let page = 0; page < own.length; page++) {
    const part = references.subarray(page * entriesPerPage, (page + 1) * entriesPerPage);
    words[page * wordsPerPage] = own[page + 1] ?? 0;
    words.set(part, page * wordsPerPage + 1);
  }
}

/**
 * Copies the references out of one directory page, which a guest may change meanwhile.
 * @param references of the whole region; those that belong to the directory page `page`, from 0, are filled in
 * @returns reference of the next page, as the guest says
 */
export function readDirectoryPage(words: Uint32Array, references: Uint32Array, page: number): number {
  const filled = page * entriesPerPage;
  const count = Math.min(entriesPerPage, references.length - filled);
  references.set(words.subarray(1, 1 + count), filled);
  return words[0]!;
}
