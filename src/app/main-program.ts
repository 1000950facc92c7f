import { fileURLToPath } from 'node:url';

/** What a process of ours is started from. Found from here, beside it, so that both may be put into one file. */
export const mainProgram = fileURLToPath(new URL('./main.js', import.meta.url));
