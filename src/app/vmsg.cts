#!/usr/bin/env node
// Each slow disk keeps threads of the pool busy; its size counts from its first use, which loading a module already is.
process.env.UV_THREADPOOL_SIZE ??= '32';
void import('./main.js');
