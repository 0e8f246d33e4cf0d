/* The server: answers requests; on a `mux:` address, after the CONNECT line of a VMM's socket. */

#define _GNU_SOURCE

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum state {
	CONNECT_LINE,
	REQUEST,
	CLIENT_END, /* answer after the client's half-close */
	ANSWER,
};

struct connection {
	int fd;
	enum state state;
	uint32_t events;
	uint32_t skipped; /* bytes of a greeting still to come, which a proxy passes on */
	struct message message;
};

static void connection_watch(int set, struct connection *connection, uint32_t events)
{
	if (connection->events == events)
		return;
	connection->events = events;
	poll_change(set, connection->fd, events, connection);
}

/* The client writes it at once and waits: a longer or shorter read is a proxy's fault. */
static enum outcome take_connect_line(struct connection *connection)
{
	static const char reply[] = "OK 1073741824\n";
	char line[64];
	ssize_t size = recv(connection->fd, line, sizeof(line), MSG_DONTWAIT);

	if (size <= 0)
		return ENDED;
	if (memcmp(line, "CONNECT ", 8) != 0 || memchr(line, '\n', size) != line + size - 1)
		fail("a vsock-mux connection began with something else than a CONNECT line");
	send(connection->fd, reply, sizeof(reply) - 1, MSG_NOSIGNAL);
	connection->state = REQUEST;
	return AGAIN;
}

static enum outcome take_request(struct connection *connection)
{
	enum outcome outcome = greeting_receive(connection->fd, &connection->skipped);
	bool after_end;

	if (outcome != WHOLE)
		return outcome;
	outcome = message_receive(connection->fd, &connection->message);
	after_end = connection->message.head.flags & ANSWER_AFTER_END;
	if (outcome == WHOLE)
		connection->state = after_end ? CLIENT_END : ANSWER;
	return outcome;
}

static enum outcome take_end(struct connection *connection)
{
	char byte;

	if (recv(connection->fd, &byte, 1, MSG_DONTWAIT) != 0)
		return ENDED;
	connection->state = ANSWER;
	return WHOLE;
}

static enum outcome answer(int set, struct connection *connection)
{
	enum outcome outcome = message_send(connection->fd, &connection->message);

	connection_watch(set, connection, outcome == WHOLE ? EPOLLIN : EPOLLOUT);
	if (outcome == WHOLE) {
		connection->state = REQUEST;
		connection->message = (struct message){0};
	}
	return outcome;
}

static struct message answer_to(const struct head *request)
{
	return (struct message){
		.head = {.length = request->answer, .seed = request->seed + 1},
	};
}

static enum outcome connection_go(int set, struct connection *connection)
{
	enum outcome outcome = AGAIN;

	if (connection->state == CONNECT_LINE)
		return take_connect_line(connection);
	if (connection->state == ANSWER)
		return answer(set, connection);
	if (connection->state == REQUEST)
		outcome = take_request(connection);
	else
		outcome = take_end(connection);
	if (connection->state != ANSWER)
		return outcome;
	connection->message = answer_to(&connection->message.head);
	return answer(set, connection);
}

static void accept_some(int set, int listener, bool mux, uint32_t skipped)
{
	for (int i = 0; i < EVENTS; i++) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		struct connection *connection;

		if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED))
			return;
		if (fd < 0)
			fail("accept4: %s", strerror(errno));
		connection = calloc(1, sizeof(*connection));
		if (connection == NULL)
			fail("out of memory");
		connection->fd = fd;
		connection->state = mux ? CONNECT_LINE : REQUEST;
		connection->events = EPOLLIN;
		connection->skipped = skipped;
		poll_add(set, fd, EPOLLIN, connection);
	}
}

void serve(const char *listen, uint32_t skipped)
{
	struct epoll_event events[EVENTS];
	int listener = address_listen(listen);
	int set = poll_make();

	poll_add(set, listener, EPOLLIN, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int number = epoll_wait(set, events, EVENTS, -1);

		for (int i = 0; i < number; i++) {
			struct connection *connection = events[i].data.ptr;

			if (connection == NULL) {
				accept_some(set, listener, address_is_mux(listen), skipped);
			} else if (connection_go(set, connection) == ENDED) {
				close(connection->fd);
				free(connection);
			}
		}
	}
}
