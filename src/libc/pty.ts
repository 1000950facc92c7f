import { chmodSync, closeSync, constants, openSync } from 'node:fs';
import { linux } from './constants.ts';
import { checked, checkedFs, SystemCallError } from './errno.ts';
import { Fd } from './fd.ts';
import { cfmakeraw, grantpt, ioctlPointer, posixOpenpt, ptsname, tcgetattr, tcsetattr, unlockpt } from './native.ts';

/** Columns and rows in characters. */
export interface WindowSize {
  readonly columns: number;
  readonly rows: number;
}

export interface PseudoTerminal {
  /** The master: non-blocking, close-on-exec. While no program has `path` open, `farSide` says that it is gone. */
  readonly fd: Fd;
  /** What programs open, such as /dev/pts/3. */
  readonly path: string;
}

const pathMaxBytes = 128;
// Larger than struct termios on every architecture (60 bytes).
const termiosBytes = 256;
const userOnly = 0o600;

/** Makes a pseudo terminal in raw mode, for this user only. @throws SystemCallError */
export function openPseudoTerminal(size: WindowSize): PseudoTerminal {
  const flags = linux.O_RDWR | linux.O_NOCTTY | linux.O_NONBLOCK | linux.O_CLOEXEC;
  const fd = new Fd(checked(posixOpenpt(flags), 'posix_openpt'));
  try {
    checked(grantpt(fd.number), 'grantpt');
    checked(unlockpt(fd.number), 'unlockpt');
    const path = pathOf(fd.number);
    checkedFs('chmod', path, () => chmodSync(path, userOnly));
    makeRaw(fd.number);
    const words = new Uint16Array([size.rows, size.columns, 0, 0]);
    checked(ioctlPointer(fd.number, linux.TIOCSWINSZ, 'void *', words), 'ioctl(TIOCSWINSZ)', path);
    // Only after a first open and close does the master report that nobody is there.
    closeSync(checkedFs('open', path, () => openSync(path, constants.O_RDWR | constants.O_NOCTTY)));
    return { fd, path };
  } catch (error) {
    fd.close();
    throw error;
  }
}

function pathOf(fd: number): string {
  const out = new Uint8Array(pathMaxBytes);
  const errno = ptsname(fd, out, out.length);
  if (errno !== 0) throw new SystemCallError('ptsname_r', errno);
  return Buffer.from(out.subarray(0, out.indexOf(0))).toString();
}

/** No echo and no translation of line ends: bytes pass as they are. */
function makeRaw(fd: number): void {
  const termios = new Uint8Array(termiosBytes);
  checked(tcgetattr(fd, termios), 'tcgetattr');
  cfmakeraw(termios);
  checked(tcsetattr(fd, linux.TCSANOW, termios), 'tcsetattr');
}

/** What a program set with TIOCSWINSZ last. @throws SystemCallError */
export function windowSize(fd: number): WindowSize {
  const words = new Uint16Array(4);
  checked(ioctlPointer(fd, linux.TIOCGWINSZ, 'void *', words), 'ioctl(TIOCGWINSZ)');
  return { columns: words[1]!, rows: words[0]! };
}
