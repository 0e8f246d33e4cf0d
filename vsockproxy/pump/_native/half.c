/*
 * One direction of a relay: how its bytes move, and how it ends.
 *
 * Two ways lead from socket to socket.  A short message goes through the thread's scratch
 * buffer.  A stream that gave much several times in a row goes by a pipe, in which the kernel
 * passes pages on without copying them (splice(2)); that takes more calls, and pays only when
 * there is much to pass on.  Whether a stream has ended, and how, only recv says.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "internal.h"

static bool side_is_tcp(const struct vsp_side *side)
{
	return side->domain == AF_INET || side->domain == AF_INET6;
}

/* Whether its reads end as epoll(7) says. */
static bool side_is_plain(const struct vsp_side *side)
{
	return side_is_tcp(side) || side->domain == AF_UNIX;
}

void vsp_half_drop(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	free(half->kept);
	half->kept = NULL;
	if (half->pipe)
		vsp_pipe_give(relay->thread, half->pipe);
	half->pipe = NULL;
	half->done = true;
}

/* The receiving side takes nothing now. */
static void side_block(struct vsp_relay *relay, struct vsp_side *side)
{
	side->writable = false;
	if (side->sendable)
		return;
	side->sendable = true;
	/* An edge follows at once where it takes bytes again by now. */
	vsp_side_watch(relay->thread, side);
}

/* The receiving side is broken, as errno says: what is under way to it is thrown away. */
static void half_break(struct vsp_relay *relay, int direction)
{
	struct vsp_side *to = &relay->sides[!direction];

	to->gone = true;
	/* EPIPE is not a reset: such a peer may still have things to say. */
	if (errno != EPIPE)
		to->error = (short)errno;
	vsp_half_drop(relay, direction);
	relay->halves[direction].dropped = true;
	vsp_relay_touch(relay); /* the half-close begins here */
}

/* Count what the receiving side has taken. */
static void half_count(struct vsp_relay *relay, int direction, size_t sent)
{
	struct vsp_half *half = &relay->halves[direction];
	uint64_t bytes = atomic_load_explicit(&half->bytes, memory_order_relaxed);

	if (sent == 0)
		return;
	atomic_store_explicit(&half->bytes, bytes + sent, memory_order_relaxed);
	vsp_relay_touch(relay);
	relay->answered = direction == DOWNSTREAM;
}

/* Send as much as the side takes: how much, possibly 0.  Drops the direction if it breaks. */
static size_t half_send(struct vsp_relay *relay, int direction, const char *data, size_t size)
{
	struct vsp_side *to = &relay->sides[!direction];
	size_t sent = 0;

	while (sent < size && to->writable) {
		ssize_t count = send(to->fd, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (count >= 0) {
			sent += (size_t)count;
		} else if (errno == EAGAIN) {
			side_block(relay, to);
		} else if (errno != EINTR) {
			half_break(relay, direction);
			break;
		}
	}
	half_count(relay, direction, sent);
	return sent;
}

/* Send what is in the pipe.  Drops the direction if the side breaks. */
static void half_drain(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];
	struct vsp_side *to = &relay->sides[!direction];
	size_t sent = 0;

	while (half->pipe->level > 0 && to->writable) {
		/* SIGPIPE is blocked in this thread. */
		ssize_t count = splice(half->pipe->out, NULL, to->fd, NULL, half->pipe->level,
				       SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

		if (count > 0) {
			sent += (size_t)count;
			half->pipe->level -= (size_t)count;
		} else if (count == 0 || errno == EAGAIN) {
			side_block(relay, to);
		} else if (errno != EINTR) {
			half_break(relay, direction);
			break;
		}
	}
	half_count(relay, direction, sent);
}

/* Send what was kept.  Whether there is none left and the direction may go on. */
static bool half_flush(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];
	struct vsp_kept *kept = half->kept;

	if (kept) {
		size_t sent = half_send(relay, direction, kept->data + kept->start,
					kept->end - kept->start);

		if (half->done) /* and what was kept is no more */
			return false;
		kept->start += sent;
		if (kept->start < kept->end)
			return false;
		free(kept);
		half->kept = NULL;
	}
	if (half->pipe && half->pipe->level > 0)
		half_drain(relay, direction);
	return !half->done && !(half->pipe && half->pipe->level > 0);
}

/* Keep what the receiving side did not take.  Without memory for it the relay ends. */
static void half_keep(struct vsp_relay *relay, int direction, const char *data, size_t size)
{
	struct vsp_kept *kept = malloc(sizeof(*kept) + size);

	if (!kept) {
		relay->sides[TARGET].error = ENOMEM;
		vsp_relay_end(relay, VSP_TARGET_RESET);
		return;
	}
	memcpy(kept->data, data, size);
	kept->start = 0;
	kept->end = size;
	relay->halves[direction].kept = kept;
}

bool vsp_side_is_whole(const struct vsp_relay *relay, int which)
{
	const struct vsp_side *side = &relay->sides[which];

	return side->fin || (which == CLIENT && side->domain == AF_UNIX);
}

/* The reading side has nothing more: pass the EOF on, or see that the stream was cut. */
static void half_finish(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	half->done = true;
	/* The half-close time-out counts from here, not from the last byte. */
	vsp_relay_touch(relay);
	if (relay->sides[direction].error && !vsp_side_is_whole(relay, direction)) {
		half->dropped = true;
		return;
	}
	/*
	 * Held only while an answer is owed: a client that has had its answer is just leaving,
	 * and the target, which may wait for its next request, has to hear of it.
	 */
	if (relay->halves[!direction].done)
		return; /* both are: the close says it */
	if (direction == DOWNSTREAM || !relay->hold || relay->answered)
		shutdown(relay->sides[!direction].fd, SHUT_WR);
}

/*
 * How much may be read now: up to the scratch buffer, less where a limit has less.  What is
 * not used goes back by allowance_return.  At 0 the direction waits for THROTTLED_MS.
 */
static size_t allowance_take(struct vsp_relay *relay, struct vsp_half *half)
{
	struct vsp_throttle *throttle = half->throttle;
	uint64_t now_ms = relay->thread->now_ms;
	size_t size = SCRATCH;

	if (!throttle)
		return SCRATCH;
	if (throttle->due_ms)
		return 0;
	for (int i = 0; i < LIMITS; i++) {
		size_t less;

		if (!throttle->limits[i])
			continue;
		less = vsp_limit_take(throttle->limits[i], size, now_ms);
		/* The limits before this one had more to give than it has. */
		for (int before = 0; before < i; before++)
			if (throttle->limits[before])
				vsp_limit_return(throttle->limits[before], size - less);
		size = less;
	}
	if (size == 0)
		throttle->due_ms = now_ms + THROTTLED_MS;
	return size;
}

static void allowance_return(struct vsp_half *half, size_t unused)
{
	for (int i = 0; half->throttle && i < LIMITS && unused > 0; i++)
		if (half->throttle->limits[i])
			vsp_limit_return(half->throttle->limits[i], unused);
}

/*
 * Read what there is.  A read that is not filled has emptied the socket, and what comes later
 * is another edge (epoll(7)), so there is no need to hear EAGAIN: if no EOF is behind it, and
 * nothing that ends a read early, which are urgent data and a Unix peer's descriptors.  Of
 * AF_VSOCK nobody promises it: Hyper-V's gives a packet at a time.
 */
static ssize_t side_receive(struct vsp_side *side, char *data, size_t room)
{
	struct iovec place = {.iov_base = data, .iov_len = room};
	struct msghdr message = {.msg_iov = &place, .msg_iovlen = 1};
	ssize_t count = recvmsg(side->fd, &message, MSG_DONTWAIT);

	if (count > 0 && (size_t)count < room && !side->fin && !side->urgent && !side->error &&
	    side_is_plain(side) && !(message.msg_flags & MSG_CTRUNC))
		side->readable = false;
	return count;
}

/* Whether a direction goes by a pipe now: its stream is long, and there is a pipe for it. */
static bool half_streams(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];
	struct vsp_side *from = &relay->sides[direction];
	struct vsp_side *to = &relay->sides[!direction];

	if (half->pipe)
		return true;
	/* Measured: out of a Unix socket splice costs more than a copy, into AF_VSOCK it is one. */
	if (half->streak < STREAK || !side_is_tcp(from) || !side_is_plain(to))
		return false;
	half->pipe = vsp_pipe_take(relay->thread);
	if (!half->pipe)
		return false;
	/* For TCP it is the socket's own flag that says whether splice waits. */
	fcntl(from->fd, F_SETFL, O_NONBLOCK);
	fcntl(to->fd, F_SETFL, O_NONBLOCK);
	return true;
}

/* Whether an errno says that one may not, or cannot, splice here: nothing of the socket. */
static bool errno_is_splices(int error)
{
	return error == EINVAL || error == EPERM || error == EACCES || error == ENOSYS ||
	       error == ENOMEM;
}

/*
 * Fill the direction's empty pipe: with how much, or 0 when the stream has paused.  The pipe
 * is given back then, and recv is to say why; only that a socket has failed it says once, so
 * *ret_error is what recv's EOF would hide.
 */
static size_t half_fill(struct vsp_relay *relay, int direction, size_t allowed, int *ret_error)
{
	struct vsp_half *half = &relay->halves[direction];
	const struct vsp_side *from = &relay->sides[direction];
	ssize_t count = splice(from->fd, NULL, half->pipe->in, NULL, allowed,
			       SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

	if (count > 0) {
		half->pipe->level = (size_t)count;
		if (count < LONG_READ)
			half->streak = 0;
		return (size_t)count;
	}
	if (count < 0 && errno != EAGAIN && errno != EINTR) {
		half->streak = 0;
		if (!errno_is_splices(errno))
			*ret_error = errno;
	}
	vsp_pipe_give(relay->thread, half->pipe);
	half->pipe = NULL;
	return 0;
}

/* Take note of how much one read gave: only a stream gives much several times in a row. */
static void half_note(struct vsp_half *half, size_t count)
{
	if (count < LONG_READ)
		half->streak = 0;
	else if (half->streak < STREAK)
		half->streak++;
}

/*
 * Read once and pass it on: how much, 0 when there is nothing more for now.  `error` is what
 * splice said just before, or 0.
 */
static size_t half_copy(struct vsp_relay *relay, int direction, size_t allowed, int error)
{
	char *scratch = relay->thread->scratch;
	struct vsp_half *half = &relay->halves[direction];
	struct vsp_side *from = &relay->sides[direction];
	ssize_t count;
	size_t sent;

	do
		count = side_receive(from, scratch, allowed);
	while (count < 0 && errno == EINTR);
	if (count > 0) {
		half_note(half, (size_t)count);
		sent = half_send(relay, direction, scratch, (size_t)count);
		if (!half->done && sent < (size_t)count)
			half_keep(relay, direction, scratch + sent, (size_t)count - sent);
		return (size_t)count;
	}
	from->readable = false;
	if (count < 0 && errno == EAGAIN)
		return 0;
	if (count < 0)
		error = errno;
	if (error) {
		from->error = (short)error;
		from->gone = true;
	} else if (!from->error) {
		from->fin = true;
	}
	half_finish(relay, direction);
	return 0;
}

void vsp_half_move(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];
	const struct vsp_side *from = &relay->sides[direction];
	const struct vsp_side *to = &relay->sides[!direction];
	size_t moved = 0;

	if (half->throttle && half->throttle->due_ms <= relay->thread->now_ms)
		half->throttle->due_ms = 0;
	while (!half->done && half_flush(relay, direction) && from->readable && to->writable) {
		size_t allowed;
		size_t count = 0;
		int error = 0;

		if (moved >= BUDGET) {
			vsp_relay_be_busy(relay);
			return;
		}
		allowed = allowance_take(relay, half);
		if (allowed == 0)
			return;
		if (half_streams(relay, direction))
			count = half_fill(relay, direction, allowed, &error);
		if (count == 0)
			count = half_copy(relay, direction, allowed, error);
		allowance_return(half, allowed - count);
		moved += count;
	}
}

void vsp_half_give_up(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	if (!relay->sides[!direction].gone || half->done)
		return;
	relay->sides[!direction].writable = true;
	vsp_half_move(relay, direction);
	if (!relay->busy && vsp_half_due(half) == 0 && !half->done) {
		vsp_half_drop(relay, direction);
		vsp_relay_touch(relay);
	}
}

