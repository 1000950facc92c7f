/*
 * A minimal virtio-blk driver and device in two processes: one split virtqueue with EVENT_IDX (virtio 1.3, 2.7) in
 * shared memory, an eventfd each way, an image file. blk IMAGE; commands are `run read|write BYTES DEPTH MILLISECONDS`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "common.h"

enum {
	queue_size = 128,
	depth_max = 32,
	transfer_max = 128 * 1024,
	sector_bytes = 512,
	desc_next = 1,
	desc_write = 2,
	type_in = 0,
	type_out = 1,
	status_ok = 0,
	status_ioerr = 1,
	status_unwritten = 0xff,
};

struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct avail {
	uint16_t flags;
	_Atomic uint16_t idx;
	uint16_t ring[queue_size];
	_Atomic uint16_t used_event;
};

struct used {
	uint16_t flags;
	_Atomic uint16_t idx;
	struct {
		uint32_t id, length;
	} ring[queue_size];
	_Atomic uint16_t avail_event;
};

struct head {
	uint32_t type, reserved;
	uint64_t sector;
};

/* All that both processes share. An address in a descriptor is an offset in here. */
struct shared {
	struct desc desc[queue_size];
	struct avail avail;
	_Alignas(64) struct used used;
	_Alignas(64) struct head heads[depth_max];
	uint8_t status[depth_max];
	_Alignas(4096) uint8_t data[depth_max][transfer_max];
};

static struct shared *shared;
static int kick_fd, call_fd;

static void signal_event(int fd)
{
	uint64_t one = 1;
	if (write(fd, &one, sizeof one) < 0)
		die("write(eventfd)");
}

static void wait_event(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t count;
	if (poll(&p, 1, -1) < 0)
		die("poll");
	if (read(fd, &count, sizeof count) < 0)
		die("read(eventfd)");
}

/* 2.7.7.2 and 2.7.10: whether `event` lies among the entries that were added between `before` and `after`. */
static bool passes_event(uint16_t event, uint16_t after, uint16_t before)
{
	return (uint16_t)(after - event - 1) < (uint16_t)(after - before);
}

static uint8_t *device_memory(const struct desc *d)
{
	if (d->address > sizeof *shared || d->length > sizeof *shared - d->address)
		broken("descriptor address");
	return (uint8_t *)shared + d->address;
}

/* Reads a descriptor once, so that what was checked is what is used. */
static struct desc read_desc(uint16_t index)
{
	if (index >= queue_size)
		broken("descriptor index");
	struct desc d;
	memcpy(&d, &shared->desc[index], sizeof d);
	return d;
}

/* Carries out one request: head, one data buffer, status. Returns the bytes written to the driver's memory. */
static uint32_t serve(int image, uint64_t capacity, uint16_t index)
{
	struct desc head_desc = read_desc(index);
	struct desc data_desc = read_desc(head_desc.next);
	struct desc status_desc = read_desc(data_desc.next);
	struct head head;
	if (!(head_desc.flags & desc_next) || head_desc.length < sizeof head || !(data_desc.flags & desc_next) ||
	    !(status_desc.flags & desc_write) || status_desc.length < 1)
		broken("chain");
	memcpy(&head, device_memory(&head_desc), sizeof head);
	uint8_t *data = device_memory(&data_desc), *status = device_memory(&status_desc);
	uint64_t offset = head.sector * sector_bytes;
	ssize_t moved = -1;
	if (head.sector < capacity && data_desc.length / sector_bytes <= capacity - head.sector) {
		if (head.type == type_in && (data_desc.flags & desc_write))
			moved = pread(image, data, data_desc.length, offset);
		else if (head.type == type_out && !(data_desc.flags & desc_write))
			moved = pwrite(image, data, data_desc.length, offset);
	}
	*status = moved == (ssize_t)data_desc.length ? status_ok : status_ioerr;
	return head.type == type_in && *status == status_ok ? data_desc.length + 1 : 1;
}

static void run_device(int image)
{
	struct stat stat;
	if (fstat(image, &stat) < 0)
		die("fstat");
	uint64_t capacity = stat.st_size / sector_bytes;
	uint16_t avail_next = 0, used_next = 0;
	for (;;) {
		uint16_t avail_idx = atomic_load(&shared->avail.idx);
		if (avail_idx == avail_next) {
			atomic_store(&shared->used.avail_event, avail_next);
			if (atomic_load(&shared->avail.idx) == avail_next)
				wait_event(kick_fd);
			continue;
		}
		if ((uint16_t)(avail_idx - avail_next) > queue_size)
			broken("avail.idx");
		for (; avail_next != avail_idx; avail_next++) {
			uint16_t head = shared->avail.ring[avail_next % queue_size];
			uint32_t length = serve(image, capacity, head);
			shared->used.ring[used_next % queue_size].id = head;
			shared->used.ring[used_next % queue_size].length = length;
			atomic_store(&shared->used.idx, ++used_next);
			/* At once, so that the driver works on this one while the next is carried out. */
			if (passes_event(atomic_load(&shared->avail.used_event), used_next, used_next - 1))
				signal_event(call_fd);
		}
	}
}

struct load {
	bool write;
	uint32_t bytes, depth;
	uint64_t slots;
};

/* xorshift64: cheap, and the same kind as in the TypeScript driver. */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t address_of(const void *where)
{
	return (const uint8_t *)where - (const uint8_t *)shared;
}

/* Request `i` has the descriptors 3i, 3i+1, 3i+2; only what changes is written again. */
static void prepare(const struct load *load, uint32_t i)
{
	uint16_t d = 3 * i;
	uint16_t data_flags = desc_next | (load->write ? 0 : desc_write);
	shared->desc[d] = (struct desc){ address_of(&shared->heads[i]), sizeof(struct head), desc_next, d + 1 };
	shared->desc[d + 1] = (struct desc){ address_of(shared->data[i]), load->bytes, data_flags, d + 2 };
	shared->desc[d + 2] = (struct desc){ address_of(&shared->status[i]), 1, desc_write, 0 };
}

static void submit(const struct load *load, uint32_t i, uint64_t *random, uint16_t *avail_next)
{
	uint64_t sector = next_random(random) % load->slots * (load->bytes / sector_bytes);
	shared->heads[i] = (struct head){ load->write ? type_out : type_in, 0, sector };
	shared->status[i] = status_unwritten;
	shared->avail.ring[(*avail_next)++ % queue_size] = 3 * i;
}

/* Publishes what was submitted since `*published` and kicks when the device wants it. */
static void publish(uint16_t avail_next, uint16_t *published)
{
	if (avail_next == *published)
		return;
	atomic_store(&shared->avail.idx, avail_next);
	if (passes_event(atomic_load(&shared->used.avail_event), avail_next, *published))
		signal_event(kick_fd);
	*published = avail_next;
}

static uint64_t run_driver(const struct load *load, double milliseconds, double *seconds)
{
	static uint16_t avail_next, published, used_next;
	static uint64_t random = 88172645463325252u;
	double start = now(), end = start + milliseconds / 1e3;
	uint64_t count = 0;
	uint32_t open = load->depth;
	bool more = true;
	for (uint32_t i = 0; i < load->depth; i++) {
		prepare(load, i);
		submit(load, i, &random, &avail_next);
	}
	publish(avail_next, &published);
	while (open > 0) {
		uint16_t used_idx = atomic_load(&shared->used.idx);
		if (used_idx == used_next) {
			atomic_store(&shared->avail.used_event, used_next);
			if (atomic_load(&shared->used.idx) == used_next)
				wait_event(call_fd);
			continue;
		}
		if ((uint16_t)(used_idx - used_next) > load->depth)
			broken("used.idx");
		more = more && now() < end;
		for (; used_next != used_idx; used_next++) {
			uint32_t i = shared->used.ring[used_next % queue_size].id / 3;
			if (i >= load->depth || shared->status[i] != status_ok)
				broken("completion");
			count++;
			if (more)
				submit(load, i, &random, &avail_next);
			else
				open--;
		}
		publish(avail_next, &published);
	}
	*seconds = now() - start;
	return count;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		broken("usage: blk IMAGE");
	int image = open(argv[1], O_RDWR | O_CLOEXEC);
	if (image < 0)
		die(argv[1]);
	struct stat stat;
	if (fstat(image, &stat) < 0)
		die("fstat");
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	kick_fd = eventfd(0, EFD_CLOEXEC);
	call_fd = eventfd(0, EFD_CLOEXEC);
	if (shared == MAP_FAILED || kick_fd < 0 || call_fd < 0)
		die("set-up");
	pid_t parent = getpid(), device = fork();
	if (device < 0)
		die("fork");
	if (device == 0) {
		/* The driver may be killed, before this line too. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			return 1;
		run_device(image);
	}
	announce_ready();
	char line[128], kind[8];
	while (next_command(line, sizeof line)) {
		struct load load;
		double milliseconds, seconds;
		if (sscanf(line, "run %7s %u %u %lf", kind, &load.bytes, &load.depth, &milliseconds) != 4)
			broken("command");
		load.write = strcmp(kind, "write") == 0;
		load.slots = load.bytes == 0 ? 0 : stat.st_size / load.bytes;
		if (load.slots == 0 || load.bytes > transfer_max || load.depth < 1 || load.depth > depth_max)
			broken("load");
		uint64_t count = run_driver(&load, milliseconds, &seconds);
		answer(count, seconds);
	}
	return 0;
}
