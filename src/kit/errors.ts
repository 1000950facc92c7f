/** One row of the error registry; `docs/errors.md` is generated from it. */
export interface ErrorSpec {
  /** Short, the same for every occurrence (RFC 9457 `title`). */
  readonly title: string;
  /** HTTP status the API answers with. */
  readonly status: number;
  /** Whether the same call may succeed later without a change by the caller. */
  readonly retryable: boolean;
  /** What a person should check. */
  readonly help: string;
}

const row = (status: number, title: string, help: string, retryable = false): ErrorSpec => ({
  title,
  status,
  retryable,
  help,
});

/** Every error a user of the API, the command or the libraries can meet. Codes are stable. */
export const errorRegistry = {
  'invalid-request': row(400, 'The request is not valid', 'Correct the field that `pointer` names.'),
  'invalid-config': row(400, 'The configuration is not valid', 'Correct the field that the JSON pointer names.'),
  unauthorized: row(401, 'A token is needed', 'Send the token of the token file: Authorization: Bearer <token>.'),
  forbidden: row(
    403,
    'The request is not allowed here',
    'Use the address that the service listens on, and no web page.',
  ),
  'not-found': row(404, 'No such object', 'List the collection to see which ids exist.'),
  'method-not-allowed': row(405, 'The method does not exist here', 'Look the path up in /v1/openapi.json.'),
  immutable: row(409, 'The field cannot change', 'Delete the object and create it anew.'),
  'config-owned': row(409, 'The object belongs to the config file', 'Change the config file and restart the service.'),
  'in-use': row(409, 'Other objects still use this one', 'Delete the users named in `detail` first.'),
  'missing-reference': row(409, 'A referenced object does not exist', 'Create the object named in `detail` first.'),
  'device-number-taken': row(
    409,
    'The device number is taken',
    'Choose another number, or leave it out to get a free one.',
  ),
  'bus-index-taken': row(409, 'The index is taken', 'Choose another index: a domain has one bus for each.'),
  'domain-taken': row(409, 'The Xen domain is taken', 'Use the domain named in `detail`.'),
  'backend-busy': row(409, 'The backend is attached already', 'Detach it first, or define a second backend.'),
  'precondition-failed': row(412, 'The object has changed', 'Read it again and repeat with its new ETag.'),
  'payload-too-large': row(413, 'The body is too large', 'Send at most the size that `detail` names.'),
  'unsupported-media-type': row(415, 'The body is not JSON', 'Send application/json.'),
  'limit-reached': row(409, 'A limit is reached', 'Delete objects that are no longer needed.'),
  'backend-unusable': row(
    422,
    'The backend cannot be used',
    'Check the path, its permissions and its locks; of a program, its last lines.',
  ),
  'backend-lost': row(503, 'The connection to the backend ended', 'Look at the program behind it and its log.', true),
  'backend-refused': row(422, 'The backend refused a request', 'Look at the log of the program behind the backend.'),
  internal: row(500, 'The service failed', 'Report this with the log lines of the same request id.'),
  unavailable: row(503, 'The service is not ready', 'Wait for /readyz to answer 200.', true),
  timeout: row(504, 'No answer in time', 'Try again; look at the peer when it happens again.', true),
  'bus-busy': row(409, 'The bus has a guest already', 'Stop the other guest, or define another bus.', true),
  'bus-refused': row(403, 'The bus refused this guest', 'Check the uid that the bus admits.'),
  'bus-lost': row(503, 'The bus connection ended', 'Reconnect.', true),
  'protocol-violation': row(400, 'The peer broke the protocol', 'Update the peer; `detail` names the rule.'),
  'memory-refused': row(400, 'The memory region was refused', 'Follow the sealing rules in docs/protocol/loopback.md.'),
  'device-failed': row(500, 'The device needs a reset', 'Reset the device and look at its backend.', true),
  'io-error': row(500, 'The device reported an I/O error', 'Look at the backend and its storage.'),
  'system-call': row(500, 'A system call failed', '`detail` names the call and its errno.'),
  'hypervisor-call': row(
    500,
    'A call of the hypervisor failed',
    '`detail` names the call, the domain, the reference and the errno.',
  ),
} as const satisfies Record<string, ErrorSpec>;

export type ErrorCode = keyof typeof errorRegistry;

/** The one exception type that leaves a module; `code` is stable, `message` is for a person. */
export class VmsgError extends Error {
  readonly code: ErrorCode;
  /** JSON pointer (RFC 6901) of the offending field, where there is one. */
  readonly pointer: string | undefined;

  constructor(code: ErrorCode, message: string, options: { pointer?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'VmsgError';
    this.code = code;
    this.pointer = options.pointer;
  }
}

/** An error as plain data, so that it crosses threads and sockets. */
export interface ErrorData {
  readonly code: ErrorCode;
  readonly message: string;
  readonly pointer?: string;
}

export function toErrorData(error: unknown): ErrorData {
  if (error instanceof VmsgError) {
    return {
      code: error.code,
      message: error.message,
      ...(error.pointer === undefined ? {} : { pointer: error.pointer }),
    };
  }
  return { code: 'internal', message: error instanceof Error ? error.message : String(error) };
}

export function fromErrorData(data: ErrorData): VmsgError {
  return new VmsgError(data.code, data.message, data.pointer === undefined ? {} : { pointer: data.pointer });
}
