/*
 * The simplest relay, to compare others with: one thread, one copy through one buffer.
 *
 * A side is not read while the other has bytes to take, so a relay keeps at most a slice,
 * and none once an end was read.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

struct side {
	int fd;
	uint32_t events;
	struct side *other;
	unsigned char *kept; /* bytes that this side has not taken yet */
	size_t kept_size;
	bool ended; /* its EOF was read and passed on */
	bool closed;
};

static unsigned char scratch[SLICE];

static void side_watch(int set, struct side *side)
{
	uint32_t events = side->kept_size > 0 ? EPOLLOUT : 0;

	if (!side->ended && side->other->kept_size == 0)
		events |= EPOLLIN;
	if (events != side->events)
		poll_change(set, side->fd, events, side);
	side->events = events;
}

static void side_keep(struct side *side, const unsigned char *data, size_t size)
{
	side->kept = malloc(size);
	if (side->kept == NULL)
		fail("out of memory");
	memcpy(side->kept, data, size);
	side->kept_size = size;
}

/* Return whether the side still takes bytes. */
static bool side_give(struct side *side, const unsigned char *data, size_t size)
{
	ssize_t sent = send(side->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0 && errno != EAGAIN)
		return false;
	if (sent < 0)
		sent = 0;
	if ((size_t)sent < size)
		side_keep(side, data + sent, size - sent);
	return true;
}

static bool side_flush(struct side *side)
{
	unsigned char *data = side->kept;
	size_t size = side->kept_size;
	bool alive;

	side->kept = NULL;
	side->kept_size = 0;
	alive = side_give(side, data, size);
	free(data);
	return alive;
}

static bool side_read(struct side *side)
{
	ssize_t size = recv(side->fd, scratch, sizeof(scratch), MSG_DONTWAIT);

	if (size < 0)
		return errno == EAGAIN;
	if (size > 0)
		return side_give(side->other, scratch, size);
	side->ended = true;
	shutdown(side->other->fd, SHUT_WR);
	return true;
}

/* Close both sides; their memory is freed after the turn, whose events may point to it. */
static void pair_close(struct side *side, struct side **dead)
{
	side->closed = side->other->closed = true;
	close(side->fd);
	close(side->other->fd);
	*dead = side;
}

static void pair_free(struct side *side)
{
	struct side *other = side->other;

	free(side->kept);
	free(other->kept);
	free(side < other ? side : other); /* they are one allocation */
}

/* Return whether the pair continues. */
static bool side_go(int set, struct side *side, uint32_t events)
{
	bool alive = true;

	if (events & EPOLLOUT && side->kept_size > 0)
		alive = side_flush(side);
	if (alive && events & (EPOLLIN | EPOLLHUP | EPOLLERR) && side->events & EPOLLIN)
		alive = side_read(side);
	if (!alive || (side->ended && side->other->ended))
		return false;
	side_watch(set, side);
	side_watch(set, side->other);
	return true;
}

static void accept_one(int set, int listener, const char *target)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	struct side *pair;

	if (fd < 0)
		return;
	pair = calloc(2, sizeof(*pair));
	if (pair == NULL)
		fail("out of memory");
	pair[0] = (struct side){.fd = fd, .events = EPOLLIN, .other = &pair[1]};
	pair[1] = (struct side){
		.fd = address_connect(target), .events = EPOLLIN, .other = &pair[0]};
	for (int i = 0; i < 2; i++)
		poll_add(set, pair[i].fd, EPOLLIN, &pair[i]);
}

void relay(const char *listen, const char *target)
{
	struct epoll_event events[EVENTS];
	struct side *dead[EVENTS];
	int listener = address_listen(listen);
	int set = poll_make();

	poll_add(set, listener, EPOLLIN, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int number = epoll_wait(set, events, EVENTS, -1);
		int closed = 0;

		for (int i = 0; i < number; i++) {
			struct side *side = events[i].data.ptr;

			if (side == NULL)
				accept_one(set, listener, target);
			else if (!side->closed && !side_go(set, side, events[i].events))
				pair_close(side, &dead[closed++]);
		}
		while (closed > 0)
			pair_free(dead[--closed]);
	}
}
