/*
 * The message ring and the doorbell of docs/protocol/loopback.md, as an independent implementation: head at 0, tail
 * at 64, sleep at 68, slots from 128; a doorbell is one byte on a SOCK_SEQPACKET socket.
 */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "common.h"

struct ring {
	_Atomic uint32_t *head, *tail, *sleep;
	uint8_t *slots;
	uint32_t slot, capacity;
	/* Own index, and what of it the peer was shown; never read back from shared memory. */
	uint32_t index, shown;
};

/* One end of a pair of rings with its doorbell. */
struct link {
	struct ring in, out;
	int bell;
};

static inline void ring_init(struct ring *r, uint8_t *memory, uint32_t bytes, uint32_t slot)
{
	r->head = (_Atomic uint32_t *)memory;
	r->tail = (_Atomic uint32_t *)(memory + 64);
	r->sleep = (_Atomic uint32_t *)(memory + 68);
	r->slots = memory + 128;
	r->slot = slot;
	r->capacity = (bytes - 128) / slot;
	r->index = r->shown = 0;
}

static inline uint32_t ring_after(const struct ring *r, uint32_t index)
{
	return index + 1 == r->capacity ? 0 : index + 1;
}

/* Sequentially consistent, for the loads of the peer's words that follow. */
static inline void ring_show(struct ring *r)
{
	r->shown = r->index;
	atomic_store(r->head, r->index);
}

/* Returns false when the ring is full. */
static inline bool ring_push(struct ring *r, const uint8_t *message, uint32_t size)
{
	uint32_t next = ring_after(r, r->index);
	uint32_t tail = atomic_load_explicit(r->tail, memory_order_acquire);
	if (next == tail && r->shown != r->index) {
		ring_show(r);
		tail = atomic_load(r->tail);
	}
	if (tail >= r->capacity)
		broken("ring tail");
	if (next == tail)
		return false;
	uint8_t *slot = r->slots + (size_t)r->index * r->slot;
	memcpy(slot, message, size);
	if (size < r->slot)
		memset(slot + size, 0, r->slot - size);
	r->index = next;
	return true;
}

/* Returns whether the consumer needs its doorbell. */
static inline bool ring_publish(struct ring *r)
{
	if (r->shown == r->index)
		return false;
	ring_show(r);
	return atomic_load(r->sleep) != 0 && atomic_exchange(r->sleep, 0) != 0;
}

static inline bool ring_pop(struct ring *r, uint8_t *message)
{
	uint32_t head = atomic_load_explicit(r->head, memory_order_acquire);
	if (head == r->index)
		return false;
	if (head >= r->capacity)
		broken("ring head");
	memcpy(message, r->slots + (size_t)r->index * r->slot, r->slot);
	r->index = ring_after(r, r->index);
	return true;
}

/* Returns whether the ring may have looked full to the producer, which then waits for a doorbell. */
static inline bool ring_release(struct ring *r)
{
	if (r->shown == r->index)
		return false;
	uint32_t before = r->shown;
	r->shown = r->index;
	atomic_store(r->tail, r->index);
	return ring_after(r, atomic_load(r->head)) == before;
}

/* Returns false when messages arrived meanwhile. */
static inline bool ring_sleep(struct ring *r)
{
	atomic_store(r->sleep, 1);
	return atomic_load(r->head) == r->index;
}

static inline void bell_ring(int fd)
{
	/* A full socket counts as rung; a peer that is gone shows in bell_take. */
	send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Takes one ring; the others keep the descriptor readable. Ends the program when the peer is gone. */
static inline void bell_take(int fd)
{
	char byte;
	if (recv(fd, &byte, 1, MSG_DONTWAIT) == 0)
		exit(0);
}

static inline void bell_wait(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	if (poll(&p, 1, -1) < 0)
		die("poll");
	bell_take(fd);
}

/* Shows what was sent, gives back what was read, and rings when the peer needs it. */
static inline void link_flush(struct link *l)
{
	bool wanted = ring_publish(&l->out);
	if (ring_release(&l->in) || wanted)
		bell_ring(l->bell);
}

/* `second` is the end that reads the first ring of the memory and writes the second one. */
static inline void link_open(struct link *l, int memory_fd, int bell, uint32_t ring_bytes, uint32_t slot, bool second)
{
	uint8_t *memory = mmap(NULL, 2 * (size_t)ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	ring_init(second ? &l->in : &l->out, memory, ring_bytes, slot);
	ring_init(second ? &l->out : &l->in, memory + ring_bytes, ring_bytes, slot);
	l->bell = bell;
}

#endif
