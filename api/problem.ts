import { type ErrorCode, errorRegistry, VmsgError } from '../src/kit/errors.ts';
import { limits } from '../src/kit/limits.ts';

/** The body of every error answer (RFC 9457). */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly instance: string;
  readonly code: ErrorCode;
  readonly pointer?: string;
  readonly parameter?: string;
}

export const problemType = 'application/problem+json';

/** A wrong query, path or header parameter. */
export class ParameterError extends VmsgError {
  readonly parameter: string;

  constructor(parameter: string, message: string) {
    super('invalid-request', message);
    this.parameter = parameter;
  }
}

/** Builds the body. Our own bugs tell nothing of themselves: their text is in the log. */
export function problemOf(error: unknown, requestId: string): Problem {
  const known = error instanceof VmsgError && error.code !== 'internal' ? error : fromFramework(error);
  const { title, status } = errorRegistry[known.code];
  return {
    type: `urn:vmsg:error:${known.code}`,
    title,
    status,
    detail: known.message,
    instance: `urn:vmsg:request:${requestId}`,
    code: known.code,
    ...(known.pointer === undefined ? {} : { pointer: known.pointer }),
    ...(known instanceof ParameterError ? { parameter: known.parameter } : {}),
  };
}

/** The framework's own errors by the codes it documents, and everything unexpected. */
function fromFramework(error: unknown): VmsgError {
  const { code, statusCode, message } = (error ?? {}) as { code?: string; statusCode?: number; message?: string };
  switch (code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new VmsgError('payload-too-large', `a body has at most ${limits.apiBodyMaxBytes} bytes`);
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new VmsgError('unsupported-media-type', 'a body needs the header Content-Type: application/json');
    case 'FST_ERR_CTP_EMPTY_JSON_BODY':
      return new VmsgError('invalid-request', 'the body is empty', { pointer: '' });
    case 'FST_ERR_CTP_INVALID_JSON_BODY':
      return new VmsgError('invalid-request', 'the body is not valid JSON', { pointer: '' });
    default:
      // Text of a 4xx of the framework is about the request; that of anything else could be about us.
      if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
        return new VmsgError('invalid-request', message ?? 'the request cannot be read');
      }
      return new VmsgError('internal', 'the request failed inside the service');
  }
}
