import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { VmsgError } from '../src/kit/errors.ts';

const loopbackHost = /^(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?$/i;
const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

/** Who may call over TCP, where no permissions of a socket say so: programs that hold the token. */
export class TokenAccess {
  readonly #digest: Buffer;

  constructor(token: string) {
    this.#digest = digest(token);
  }

  /**
   * Host and Origin come first: a web page whose name was made to resolve to this machine sends its own name.
   * @returns why the request is refused, `forbidden` or `unauthorized`
   */
  refusal({ host = '', origin, authorization }: IncomingHttpHeaders): VmsgError | undefined {
    if (!loopbackHost.test(host)) {
      return new VmsgError('forbidden', 'the header Host must be localhost, 127.0.0.1 or [::1], and a port');
    }
    if (origin !== undefined && origin.toLowerCase() !== `http://${host.toLowerCase()}`) {
      return new VmsgError('forbidden', 'the header Origin names another place: web pages may not call this API');
    }
    if (authorization === undefined) return new VmsgError('unauthorized', 'the header Authorization is missing');
    const token = /^bearer +(\S+)$/i.exec(authorization)?.[1];
    if (token === undefined)
      return new VmsgError('unauthorized', 'the header Authorization must be Bearer and a token');
    // Digests have one length, and comparing them takes the same time wherever they differ.
    return timingSafeEqual(digest(token), this.#digest)
      ? undefined
      : new VmsgError('unauthorized', 'the token is wrong');
  }
}
