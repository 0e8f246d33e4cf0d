/* One socket of a relay. */

#define _GNU_SOURCE

#include <errno.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "side.h"

static int side_control(struct vsp_side *side, int epoll, int operation)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET,
		.data.ptr = side,
	};

	if (side->sendable)
		event.events |= EPOLLOUT;
	return epoll_ctl(epoll, operation, side->fd, &event) < 0 ? -errno : 0;
}

static void side_ask_for_sendable(struct vsp_side *side, int epoll, bool sendable)
{
	side->sendable = sendable;
	if (!side->watched)
		return;
	/* A change cannot fail for a socket that is in the set already. */
	(void)side_control(side, epoll, EPOLL_CTL_MOD);
}

void vsp_side_ask_domain(struct vsp_side *side)
{
	int domain = AF_UNSPEC;
	socklen_t size = sizeof(domain);

	if (side->domain != AF_UNSPEC)
		return;
	getsockopt(side->fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
	side->domain = (unsigned char)domain;
}

int vsp_side_watch(struct vsp_side *side, int epoll)
{
	int error = side_control(side, epoll, EPOLL_CTL_ADD);

	side->watched = !error;
	return error;
}

/*
 * Learn of a reset before its stream is read to the end, as an upload that is not read has to end
 * too.  Reading SO_ERROR clears it, and recv says a clean EOF afterwards: so it is remembered.  TCP
 * says EPIPE where a FIN came before the reset, but only until our own FIN is out (tcp_reset in
 * net/ipv4/tcp_input.c): then only recv tells the two apart, and SO_ERROR is left to it.
 */
static void side_note_error(struct vsp_side *side)
{
	int error = 0;
	socklen_t size = sizeof(error);

	getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error == EPIPE && vsp_side_is_tcp(side))
		side->fin = true;
	else
		side->error = (short)error;
}

void vsp_side_note(struct vsp_side *side, int epoll, uint32_t events)
{
	if ((events & EPOLLERR) && !side->error && !(side->shut && vsp_side_is_tcp(side)))
		side_note_error(side);
	if ((events & (EPOLLRDHUP | EPOLLHUP)) && !(events & EPOLLERR) && !side->error)
		side->fin = true;
	if (events & (EPOLLHUP | EPOLLERR))
		side->gone = true;
	if (events & EPOLLPRI)
		side->urgent = true;
	if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		side->readable = true;
	if ((events & EPOLLOUT) && side->writable && side->sendable)
		side_ask_for_sendable(side, epoll, false);
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		side->writable = true;
}

void vsp_side_block(struct vsp_side *side, int epoll)
{
	side->writable = false;
	/* Where the socket takes bytes again by now, an edge follows immediately. */
	if (!side->sendable)
		side_ask_for_sendable(side, epoll, true);
}

/*
 * A short read has emptied the socket, and later bytes are another edge (epoll(7)), which saves
 * the read that would say EAGAIN.  Except where an EOF or an error is behind it, or where something
 * ends a read early: urgent data and a Unix peer's descriptors.  AF_VSOCK does not promise it:
 * Hyper-V's transport returns one packet at a time.
 */
ssize_t vsp_side_receive(struct vsp_side *side, char *data, size_t room)
{
	struct iovec place = {.iov_base = data, .iov_len = room};
	struct msghdr message = {.msg_iov = &place, .msg_iovlen = 1};
	ssize_t count = recvmsg(side->fd, &message, MSG_DONTWAIT);

	if (count > 0 && (size_t)count < room && !side->fin && !side->urgent && !side->gone &&
	    vsp_side_is_plain(side) && !(message.msg_flags & MSG_CTRUNC))
		side->readable = false;
	return count;
}

bool vsp_side_is_truncated(const struct vsp_side *side)
{
	return side->error && !side->fin && !side->lossless;
}

void vsp_side_shut(struct vsp_side *side)
{
	if (!side->shut)
		shutdown(side->fd, SHUT_WR);
	side->shut = true;
}

unsigned vsp_side_queued(const struct vsp_side *side)
{
	int bytes = 0;

	/* tcp(7), unix(7): SIOCOUTQ; older kernels have none for AF_VSOCK. */
	if (ioctl(side->fd, SIOCOUTQ, &bytes) < 0 || bytes < 0)
		return 0;
	return (unsigned)bytes;
}

bool vsp_side_is_tcp(const struct vsp_side *side)
{
	return side->domain == AF_INET || side->domain == AF_INET6;
}

bool vsp_side_is_plain(const struct vsp_side *side)
{
	return vsp_side_is_tcp(side) || side->domain == AF_UNIX;
}

void vsp_side_reset_at_close(const struct vsp_side *side)
{
	const struct linger reset = {.l_onoff = 1, .l_linger = 0};

	/* Only TCP: on AF_VSOCK, SO_LINGER makes close() wait. */
	if (vsp_side_is_tcp(side))
		setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
}

void vsp_side_ignore(struct vsp_side *side, int epoll)
{
	/*
	 * close() removes it from the set only with the socket's last descriptor, and a child that
	 * is being forked may hold another one.
	 */
	if (side->watched)
		epoll_ctl(epoll, EPOLL_CTL_DEL, side->fd, NULL);
	side->watched = false;
}

void vsp_side_close(struct vsp_side *side, int epoll)
{
	int fd = side->fd;

	vsp_side_ignore(side, epoll);
	side->fd = -1; /* before the number can be another file's: vsp_relay_duplicate */
	close(fd);
}
