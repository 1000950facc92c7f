/*
 * A driver of a vhost-user-blk device by libblkio: libblkio SOCKET. Commands are `run read|write BYTES DEPTH
 * MILLISECONDS`, as those of blk.c. It waits on the completion descriptor, never busily.
 */
#define _GNU_SOURCE
#include <blkio.h>
#include <poll.h>
#include <stdbool.h>

#include "common.h"

enum { depth_max = 32, queue_size = 128, transfer_max = 128 * 1024 };

struct load {
	bool write;
	uint32_t bytes, depth;
	uint64_t slots;
};

static struct blkioq *queue;
static uint8_t *memory;
static int completion_fd;

static void need(int result, const char *what)
{
	if (result == 0)
		return;
	fprintf(stderr, "%s: %s\n", what, blkio_get_error_msg());
	exit(1);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void submit(const struct load *load, uintptr_t slot, uint64_t *random)
{
	uint64_t offset = next_random(random) % load->slots * load->bytes;
	uint8_t *data = memory + slot * transfer_max;
	if (load->write)
		blkioq_write(queue, offset, data, load->bytes, (void *)slot, 0);
	else
		blkioq_read(queue, offset, data, load->bytes, (void *)slot, 0);
}

/* What has been submitted goes to the device here; waits until something is complete. */
static int complete(struct blkio_completion *completions, int max)
{
	struct pollfd p = { .fd = completion_fd, .events = POLLIN };
	uint64_t count;
	for (;;) {
		int n = blkioq_do_io(queue, completions, 0, max, NULL);
		if (n < 0)
			need(n, "blkioq_do_io");
		if (n > 0)
			return n;
		if (poll(&p, 1, -1) < 0)
			die("poll");
		if (read(completion_fd, &count, sizeof count) < 0 && errno != EAGAIN)
			die("read(completion)");
	}
}

static uint64_t run_driver(const struct load *load, double milliseconds, double *seconds)
{
	static uint64_t random = 88172645463325252u;
	struct blkio_completion completions[depth_max];
	double start = now(), end = start + milliseconds / 1e3;
	uint64_t count = 0;
	uint32_t open = load->depth;
	for (uint32_t i = 0; i < load->depth; i++)
		submit(load, i, &random);
	while (open > 0) {
		int n = complete(completions, depth_max);
		bool more = now() < end;
		for (int i = 0; i < n; i++) {
			if (completions[i].ret != 0)
				broken("completion");
			count++;
			if (more)
				submit(load, (uintptr_t)completions[i].user_data, &random);
			else
				open--;
		}
	}
	*seconds = now() - start;
	return count;
}

static uint64_t open_device(const char *socket)
{
	struct blkio *b;
	struct blkio_mem_region region;
	uint64_t capacity;
	need(blkio_create("virtio-blk-vhost-user", &b), "blkio_create");
	need(blkio_set_str(b, "path", socket), "path");
	need(blkio_connect(b), "blkio_connect");
	need(blkio_set_int(b, "queue-size", queue_size), "queue-size");
	need(blkio_start(b), "blkio_start");
	need(blkio_get_uint64(b, "capacity", &capacity), "capacity");
	need(blkio_alloc_mem_region(b, &region, (size_t)depth_max * transfer_max), "memory");
	need(blkio_map_mem_region(b, &region), "memory");
	memory = region.addr;
	memset(memory, 0x5a, region.len);
	queue = blkio_get_queue(b, 0);
	blkioq_set_completion_fd_enabled(queue, true);
	completion_fd = blkioq_get_completion_fd(queue);
	return capacity;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		broken("usage: libblkio SOCKET");
	uint64_t capacity = open_device(argv[1]);
	announce_ready();
	char line[128], kind[8];
	while (next_command(line, sizeof line)) {
		struct load load;
		double milliseconds, seconds;
		if (sscanf(line, "run %7s %u %u %lf", kind, &load.bytes, &load.depth, &milliseconds) != 4)
			broken("command");
		load.write = strcmp(kind, "write") == 0;
		load.slots = load.bytes == 0 ? 0 : capacity / load.bytes;
		if (load.slots == 0 || load.bytes > transfer_max || load.depth < 1 || load.depth > depth_max)
			broken("load");
		uint64_t count = run_driver(&load, milliseconds, &seconds);
		answer(count, seconds);
	}
	return 0;
}
