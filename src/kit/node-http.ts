/** In Node 22 an import of node:http evaluates all its exports, and so all of `fetch`: a sixth of the start of the service. */
export const http = process.getBuiltinModule('node:http');
