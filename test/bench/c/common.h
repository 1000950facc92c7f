/*
 * What the baseline programs share: errors, time, and the command loop. Each program waits on standard input for
 * `run ARGUMENTS MILLISECONDS` and answers `COUNT SECONDS`, so that it is warm and idle between the runs it is
 * compared in.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline _Noreturn void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/* A value that the peer must not have written: not an error of the system. */
static inline _Noreturn void broken(const char *what)
{
	fprintf(stderr, "broken: %s\n", what);
	exit(1);
}

static inline double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Returns 0 at the end of input: the harness is gone or has finished. */
static inline int next_command(char *line, int size)
{
	return fgets(line, size, stdin) != NULL;
}

static inline void answer(uint64_t count, double seconds)
{
	printf("%llu %.9f\n", (unsigned long long)count, seconds);
	fflush(stdout);
}

static inline void announce_ready(void)
{
	puts("ready");
	fflush(stdout);
}

#endif
