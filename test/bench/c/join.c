/*
 * Passes notifications on between a guest and a program: the kick of the guest (descriptor 3) is a signal on 5, the call
 * of the program (6) is one on 4. All are eventfds, waited for edge-triggered and never read. Ends with its input.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/epoll.h>

#include "common.h"

enum { guest_kick = 3, guest_call = 4, program_kick = 5, program_call = 6, batch = 64 };

static void watch(int epoll, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll_ctl");
}

static void signal_fd(int fd)
{
	static const uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		die("write");
}

int main(void)
{
	struct epoll_event events[batch];
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0)
		die("epoll_create1");
	watch(epoll, guest_kick, EPOLLIN | EPOLLET);
	watch(epoll, program_call, EPOLLIN | EPOLLET);
	watch(epoll, STDIN_FILENO, EPOLLIN);
	announce_ready();
	for (;;) {
		int count = epoll_wait(epoll, events, batch, -1);

		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < count; i++) {
			switch (events[i].data.fd) {
			case guest_kick:
				signal_fd(program_kick);
				break;
			case program_call:
				signal_fd(guest_call);
				break;
			default:
				return 0;
			}
		}
	}
}
