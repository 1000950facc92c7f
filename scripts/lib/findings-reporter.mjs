function describe({ name, details }) {
  const error = details.error.cause ?? details.error;
  // The message of a failed assertion says everything; of any other error the stack is needed.
  const text = error?.code === 'ERR_ASSERTION' ? error.message : (error?.stack ?? String(error));
  return `${name}:\n${text.replace(/^/gm, '  ')}\n`;
}

/** A reporter of `node --test` that prints failures only, each once, and what the tests wrote to stderr. */
export default async function* findings(source) {
  for await (const { type, data } of source) {
    if (type === 'test:fail') yield describe(data);
    if (type === 'test:stderr') yield data.message;
  }
}
