/* epoll and the clock. */

#define _GNU_SOURCE

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include "load.h"

int poll_make(void)
{
	int set = epoll_create1(EPOLL_CLOEXEC);

	if (set < 0)
		fail("epoll_create1: %s", strerror(errno));
	return set;
}

static void control(int set, int call, int fd, uint32_t events, void *data)
{
	struct epoll_event event = {.events = events, .data.ptr = data};

	if (epoll_ctl(set, call, fd, &event) < 0)
		fail("epoll_ctl: %s", strerror(errno));
}

void poll_add(int set, int fd, uint32_t events, void *data)
{
	control(set, EPOLL_CTL_ADD, fd, events, data);
}

void poll_change(int set, int fd, uint32_t events, void *data)
{
	control(set, EPOLL_CTL_MOD, fd, events, data);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
