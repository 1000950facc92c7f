/*
 * Both ends of a message ring, and a relay between two of them: ring ROLE RING-BYTES SLOT MESSAGE-BYTES.
 * Descriptors: 3 ring memory and 4 doorbell; the relay has 5 and 6 for its second link.
 */
#define _GNU_SOURCE
#include "ring.h"

enum {
	type_response = 1,
	type_bus = 2,
	id_ping = 0x03,
	id_set_config = 0x06,
	ping_bytes = 12,
	set_config_bytes = 20,
	slot_max = 512,
	batch = 32,
	/* How long an end of the throughput test looks again before it waits; the TypeScript one does the same. */
	spin_ns = 20000,
};

/* The header of virtio-msg. */
struct header {
	uint8_t type, id;
	uint16_t device, token, size;
};

struct set_config {
	struct header header;
	uint32_t generation, offset, length;
};

static void make_request(uint8_t *message, uint32_t size, uint16_t token)
{
	struct header header = { type_bus, id_ping, 0, token, size };
	if (size != ping_bytes) {
		struct set_config body = { { 0, id_set_config, 1, token, size }, 0, 0, size - set_config_bytes };
		memcpy(message, &body, sizeof body);
	} else {
		memcpy(message, &header, sizeof header);
		memcpy(message + sizeof header, &token, sizeof token);
	}
}

/* Checks what every receiver has to; size, type and body are the peer's. */
static struct header checked_header(const uint8_t *message, uint32_t slot)
{
	struct header header;
	memcpy(&header, message, sizeof header);
	if (header.size < sizeof header || header.size > slot)
		broken("message size");
	if (header.type & type_bus) {
		if (header.id != id_ping || header.size != ping_bytes || header.device != 0)
			broken("PING");
		return header;
	}
	struct set_config body;
	memcpy(&body, message, sizeof body);
	if (header.id != id_set_config || header.size < sizeof body || body.length != header.size - sizeof body)
		broken("SET_CONFIG");
	return header;
}

static void send_message(struct link *l, const uint8_t *message, uint32_t size)
{
	if (!ring_push(&l->out, message, size))
		broken("a ring is full with one message under way");
}

/* Requests one at a time, each answered before the next. */
static void run_ping(struct link *l, uint32_t size)
{
	uint8_t request[slot_max] = { 0 }, response[slot_max];
	uint16_t token = 0;
	char line[128];
	announce_ready();
	while (next_command(line, sizeof line)) {
		double milliseconds = atof(line + strlen("run "));
		double start = now(), end = start + milliseconds / 1e3, at;
		uint64_t count = 0;
		do {
			make_request(request, size, ++token);
			send_message(l, request, size);
			link_flush(l);
			while (!ring_pop(&l->in, response))
				if (ring_sleep(&l->in))
					bell_wait(l->bell);
			struct header header = checked_header(response, l->in.slot);
			if (!(header.type & type_response) || header.token != token)
				broken("response");
			count++;
			at = now();
		} while (at < end);
		link_flush(l);
		answer(count, at - start);
	}
}

static void run_echo(struct link *l)
{
	uint8_t message[slot_max];
	for (;;) {
		while (ring_pop(&l->in, message)) {
			struct header header = checked_header(message, l->in.slot);
			message[0] |= type_response;
			send_message(l, message, header.size);
		}
		link_flush(l);
		if (ring_sleep(&l->in))
			bell_wait(l->bell);
	}
}

/* Takes everything from one link to the other under tokens of its own, as two buses have tokens of their own. */
static void relay(struct link *from, struct link *to, uint16_t *tokens, uint16_t *last_token)
{
	uint8_t message[slot_max];
	do {
		while (ring_pop(&from->in, message)) {
			struct header header = checked_header(message, from->in.slot);
			if (header.type & type_response) {
				header.token = tokens[header.token];
			} else {
				tokens[++*last_token] = header.token;
				header.token = *last_token;
			}
			memcpy(message, &header, sizeof header);
			send_message(to, message, header.size);
		}
		link_flush(to);
		link_flush(from);
	} while (!ring_sleep(&from->in));
}

static void run_relay(struct link *driver, struct link *device)
{
	static uint16_t tokens[65536];
	uint16_t last_token = 0;
	struct link *links[2] = { driver, device };
	for (;;) {
		struct pollfd p[2] = { { .fd = driver->bell, .events = POLLIN }, { .fd = device->bell, .events = POLLIN } };
		relay(driver, device, tokens, &last_token);
		relay(device, driver, tokens, &last_token);
		if (poll(p, 2, -1) < 0)
			die("poll");
		for (int i = 0; i < 2; i++)
			if (p[i].revents)
				bell_take(links[i]->bell);
	}
}

/* Lets `ready` be asked again for a short time before the program sleeps. */
static bool spun_out(double *since)
{
	double at = now();
	if (*since == 0)
		*since = at;
	return at - *since > spin_ns * 1e-9;
}

static void run_produce(struct link *l, uint32_t size)
{
	uint8_t message[slot_max] = { 0 };
	uint32_t sequence = 0;
	char line[128];
	announce_ready();
	while (next_command(line, sizeof line)) {
		double milliseconds = atof(line + strlen("run "));
		double start = now(), end = start + milliseconds / 1e3;
		uint64_t count = 0;
		while (now() < end) {
			/* The clock is looked at seldom: it would cost as much as a batch. */
			for (int batches = 0; batches < 64; batches++) {
				double since = 0;
				for (int i = 0; i < batch;) {
					memcpy(message + sizeof(struct header), &sequence, sizeof sequence);
					if (ring_push(&l->out, message, size)) {
						sequence++;
						i++;
						since = 0;
						continue;
					}
					if (ring_publish(&l->out))
						bell_ring(l->bell);
					if (spun_out(&since))
						bell_wait(l->bell);
				}
				if (ring_publish(&l->out))
					bell_ring(l->bell);
				count += batch;
			}
		}
		answer(count, now() - start);
	}
}

static void run_consume(struct link *l)
{
	uint8_t message[slot_max];
	uint32_t sequence = 0, got;
	double since = 0;
	for (;;) {
		int taken = 0;
		while (taken < batch && ring_pop(&l->in, message)) {
			memcpy(&got, message + sizeof(struct header), sizeof got);
			if (got != sequence++)
				broken("sequence");
			taken++;
		}
		if (ring_release(&l->in))
			bell_ring(l->bell);
		if (taken > 0) {
			since = 0;
		} else if (spun_out(&since)) {
			since = 0;
			if (ring_sleep(&l->in))
				bell_wait(l->bell);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		broken("usage: ring ROLE RING-BYTES SLOT MESSAGE-BYTES");
	const char *role = argv[1];
	uint32_t bytes = atoi(argv[2]), slot = atoi(argv[3]), size = atoi(argv[4]);
	bool second = strcmp(role, "ping") != 0 && strcmp(role, "produce") != 0;
	struct link link, other;
	if (slot > slot_max || size > slot)
		broken("slot size");
	link_open(&link, 3, 4, bytes, slot, second);
	if (strcmp(role, "ping") == 0) {
		run_ping(&link, size);
	} else if (strcmp(role, "echo") == 0) {
		run_echo(&link);
	} else if (strcmp(role, "relay") == 0) {
		link_open(&other, 5, 6, bytes, slot, false);
		run_relay(&link, &other);
	} else if (strcmp(role, "produce") == 0) {
		run_produce(&link, size);
	} else if (strcmp(role, "consume") == 0) {
		run_consume(&link);
	} else {
		broken("role");
	}
	return 0;
}
