/*
 * The dial of a direct relay's target: connect(2), and a VMM's handshake.
 *
 * A Unix listener whose backlog is full says EAGAIN, and there is no event to wait for.  A VMM's
 * answer is peeked at until its line is complete, so that the bytes behind it stay the stream's.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "dial.h"

#ifndef SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW
#define SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW 8 /* linux/vm_sockets.h */
#endif

enum {
	FIRST_PAUSE_MS = 1, /* doubled each time, up to: */
	LONGEST_PAUSE_MS = 50,
	VSOCK_MS = 2000, /* after which Linux gives a vsock connect up */
	LINE = 32,       /* the longest answer of a VMM, with its newline */
};

static enum vsp_dialled dial_fail(struct vsp_relay *relay, enum vsp_cause cause, int error)
{
	relay->direct->dial = VSP_NOTHING;
	relay->direct->cause = (unsigned char)cause;
	relay->direct->error = error;
	return VSP_FAILED;
}

/* Wait for `what`, until the dial's or the relay's end, or `pause_ms` at most where that is not 0. */
static enum vsp_dialled dial_wait(struct vsp_relay *relay, struct vsp_loop *loop,
				  enum vsp_dial what, uint64_t pause_ms)
{
	struct vsp_side *side = &relay->sides[TARGET];
	uint64_t due_ms = relay->direct->dial_ms;

	if (relay->end_ms < due_ms)
		due_ms = relay->end_ms;
	if (pause_ms && loop->now_ms + pause_ms < due_ms)
		due_ms = loop->now_ms + pause_ms;
	relay->direct->dial = (unsigned char)what;
	vsp_timer_set(&loop->timers, &relay->timer, due_ms);
	if (what != VSP_BACKLOG && !side->watched) {
		side->sendable = what == VSP_ACCEPT;
		if (vsp_side_watch(side, loop->epoll) < 0)
			return dial_fail(relay, VSP_ERRNO, ENOMEM);
	}
	return VSP_PENDING;
}

static enum vsp_dialled dial_reached(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay->direct->dial = VSP_NOTHING;
	relay->direct->connected_us = vsp_clock_us();
	vsp_timer_remove(&loop->timers, &relay->timer);
	return VSP_REACHED;
}

/* ---- a VMM's handshake ---- */

/* Read the number in an "OK <number>" line with its newline.  Whether it is such a line. */
static bool line_number(const char *line, size_t size, uint64_t *ret_number)
{
	size_t digits = 0;
	size_t at = 3;

	if (size < 5 || memcmp(line, "OK ", 3) != 0)
		return false;
	*ret_number = 0;
	for (; at < size && line[at] >= '0' && line[at] <= '9'; at++, digits++)
		*ret_number = *ret_number * 10 + (uint64_t)(line[at] - '0');
	while (at < size && (line[at] == ' ' || line[at] == '\r'))
		at++;
	return digits >= 1 && digits <= 20 && at == size - 1 && line[at] == '\n';
}

static enum vsp_dialled dial_is_malformed(struct vsp_relay *relay, const char *line, size_t size)
{
	relay->direct->line_size = (unsigned char)size;
	memcpy(relay->direct->line, line, size);
	return dial_fail(relay, VSP_MALFORMED, 0);
}

/* Whether an errno says that the VMM has closed the connection. */
static bool is_closed(int error)
{
	return error == EPIPE || error == ECONNRESET;
}

/* Read the VMM's answer; `ended` is whether nothing more comes. */
static enum vsp_dialled dial_answer(struct vsp_relay *relay, struct vsp_loop *loop, bool ended)
{
	int fd = relay->sides[TARGET].fd;
	char line[LINE];
	ssize_t count = recv(fd, line, sizeof(line), MSG_PEEK | MSG_DONTWAIT);
	const char *newline = count > 0 ? memchr(line, '\n', (size_t)count) : NULL;
	size_t size;

	if (count < 0 && (errno == EAGAIN || errno == EINTR))
		return VSP_PENDING;
	if (count < 0)
		return dial_fail(relay, is_closed(errno) ? VSP_CLOSED_BEFORE_OK : VSP_ERRNO, errno);
	if (count == 0)
		return dial_fail(relay, VSP_CLOSED_BEFORE_OK, 0);
	if (!newline && count < LINE && !ended)
		return VSP_PENDING;
	size = newline ? (size_t)(newline - line) + 1 : (size_t)count;
	if (!line_number(line, size, &relay->direct->vmm_port))
		return dial_is_malformed(relay, line, size);
	(void)!recv(fd, line, size, MSG_DONTWAIT);
	return dial_reached(relay, loop);
}

static enum vsp_dialled dial_handshake(struct vsp_relay *relay, struct vsp_loop *loop)
{
	const struct vsp_target *target = &relay->direct->route->target;
	size_t size = strnlen(target->request, sizeof(target->request));
	uint64_t answer_ms = loop->now_ms + target->handshake_ms;

	/* Whole: the buffer is empty. */
	if (send(relay->sides[TARGET].fd, target->request, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return dial_fail(relay, is_closed(errno) ? VSP_CLOSED_BEFORE_OK : VSP_ERRNO, errno);
	if (!target->answers)
		return dial_reached(relay, loop);
	if (target->handshake_ms && answer_ms < relay->direct->dial_ms)
		relay->direct->dial_ms = answer_ms;
	return dial_wait(relay, loop, VSP_ANSWER, 0);
}

/* ---- connect(2) ---- */

/* Whether a TCP socket is connected to itself: the kernel chose the target's port for our end. */
static bool is_own(const struct vsp_side *side, const struct vsp_target *target)
{
	struct sockaddr_storage own;
	socklen_t size = sizeof(own);

	if (getsockname(side->fd, (struct sockaddr *)&own, &size) < 0)
		return false;
	/* Their ports first: all others differ there. */
	if (side->domain == AF_INET)
		return memcmp(&own, target->address, offsetof(struct sockaddr_in, sin_zero)) == 0;
	return ((struct sockaddr_in6 *)&own)->sin6_port ==
		       ((const struct sockaddr_in6 *)target->address)->sin6_port &&
	       memcmp(&((struct sockaddr_in6 *)&own)->sin6_addr,
		      &((const struct sockaddr_in6 *)target->address)->sin6_addr,
		      sizeof(struct in6_addr)) == 0;
}

static enum vsp_dialled dial_connected(struct vsp_relay *relay, struct vsp_loop *loop)
{
	const struct vsp_target *target = &relay->direct->route->target;
	struct vsp_side *side = &relay->sides[TARGET];

	if (vsp_side_is_tcp(side) && is_own(side, target))
		return dial_fail(relay, VSP_ERRNO, ECONNREFUSED);
	/* Now, as it may end right behind its OK. */
	if (side->vmm)
		side->vmm = (unsigned char)vsp_peers_meet(&loop->peers, side->fd, target->address);
	return target->request[0] ? dial_handshake(relay, loop) : dial_reached(relay, loop);
}

static int dial_connect(const struct vsp_relay *relay)
{
	const struct vsp_target *target = &relay->direct->route->target;

	return connect(relay->sides[TARGET].fd, (const struct sockaddr *)target->address,
		       target->address_size) < 0
		       ? errno
		       : 0;
}

/* Act on what connect(2) has said. */
static enum vsp_dialled dial_go_on(struct vsp_relay *relay, struct vsp_loop *loop, int error)
{
	const struct vsp_side *side = &relay->sides[TARGET];
	unsigned char pause_ms;

	/* On the loopback TCP's answer has arrived: asking costs less than waiting for it. */
	if (error == EINPROGRESS && vsp_side_is_tcp(side))
		error = dial_connect(relay);
	if (error == 0 || error == EISCONN)
		return dial_connected(relay, loop);
	if (error == EINPROGRESS || error == EALREADY)
		return dial_wait(relay, loop, VSP_ACCEPT, 0);
	if (error != EAGAIN || side->domain != AF_UNIX || loop->now_ms >= relay->direct->dial_ms)
		return dial_fail(relay, VSP_ERRNO, error);
	pause_ms = relay->direct->pause_ms;
	relay->direct->pause_ms = 2 * pause_ms < LONGEST_PAUSE_MS ? 2 * pause_ms : LONGEST_PAUSE_MS;
	return dial_wait(relay, loop, VSP_BACKLOG, pause_ms);
}

static int options_set(int fd, const struct vsp_target *target)
{
	for (unsigned i = 0; i < target->option_count; i++) {
		const struct vsp_option *option = &target->options[i];
		int value = (int)option->value;
		bool wide = option->level == AF_VSOCK;

		if (setsockopt(fd, option->level, option->name,
			       wide ? (const void *)&option->value : (const void *)&value,
			       wide ? sizeof(option->value) : sizeof(value)) < 0)
			return -errno;
	}
	return 0;
}

/* Have the kernel wait for a vsock's answer as long as we do; where it cannot, 2 s stay. */
static void vsock_set_timeout(int fd, uint64_t connect_ms)
{
	const struct {
		int64_t seconds;
		int64_t microseconds;
	} timeout = {(int64_t)(connect_ms / 1000), (int64_t)(connect_ms % 1000) * 1000};
	const struct timeval old = {timeout.seconds, timeout.microseconds};

	if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, &timeout,
		       sizeof(timeout)) < 0)
		(void)setsockopt(fd, AF_VSOCK, 6, &old, sizeof(old)); /* ..._OLD */
}

enum vsp_dialled vsp_dial_begin(struct vsp_relay *relay, struct vsp_loop *loop)
{
	const struct vsp_target *target = &relay->direct->route->target;
	struct vsp_side *side = &relay->sides[TARGET];
	int error;

	side->domain = (unsigned char)((const struct sockaddr *)target->address)->sa_family;
	relay->direct->dial_ms = loop->now_ms + target->connect_ms;
	relay->direct->pause_ms = FIRST_PAUSE_MS;
	side->fd = socket(side->domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (side->fd < 0)
		return dial_fail(relay, VSP_ERRNO, errno);
	error = options_set(side->fd, target);
	if (error)
		return dial_fail(relay, VSP_ERRNO, -error);
	if (side->domain == AF_VSOCK && target->connect_ms > VSOCK_MS)
		vsock_set_timeout(side->fd, target->connect_ms);
	return dial_go_on(relay, loop, dial_connect(relay));
}

/* ---- what goes on ---- */

enum vsp_dialled vsp_dial_event(struct vsp_relay *relay, struct vsp_loop *loop, uint32_t events)
{
	struct vsp_side *side = &relay->sides[TARGET];
	int error = 0;
	socklen_t size = sizeof(error);

	if (relay->direct->dial == VSP_ANSWER)
		return dial_answer(relay, loop, events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
	if (!(events & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
		return VSP_PENDING;
	getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	return error ? dial_fail(relay, VSP_ERRNO, error) : dial_connected(relay, loop);
}

enum vsp_dialled vsp_dial_due(struct vsp_relay *relay, struct vsp_loop *loop)
{
	if (relay->direct->dial == VSP_BACKLOG)
		return dial_go_on(relay, loop, dial_connect(relay));
	if (loop->now_ms < relay->direct->dial_ms)
		return dial_wait(relay, loop, (enum vsp_dial)relay->direct->dial, 0);
	if (relay->direct->dial == VSP_ANSWER)
		vsp_dial_give_up(relay, loop);
	return dial_fail(relay, VSP_ERRNO, ETIMEDOUT);
}

bool vsp_dial_is_under_way(const struct vsp_relay *relay)
{
	return relay->direct && relay->direct->dial != VSP_NOTHING;
}

void vsp_dial_give_up(struct vsp_relay *relay, struct vsp_loop *loop)
{
	struct vsp_side *side = &relay->sides[TARGET];

	if (relay->direct->dial == VSP_ANSWER) {
		vsp_side_ignore(side, loop->epoll);
		relay->direct->unanswered = side->fd;
		side->fd = -1;
	}
	relay->direct->dial = VSP_NOTHING;
}
