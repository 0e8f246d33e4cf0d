/*
 * One direction of a relay: how its bytes move from one side to the other.
 *
 * There are two ways from socket to socket.  A short message is copied through the thread's
 * scratch buffer.  A stream whose reads were long several times in a row is spliced through a
 * pipe, in which the kernel passes pages on without copying them (splice(2)); that takes more
 * calls and pays only for long streams.  Only recv says whether a stream has ended, and how.
 *
 * Bytes that the receiving socket did not take are kept until it does, so an idle relay owns
 * neither a buffer nor a pipe.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "move.h"

enum {
	LONG_READ = 32 * 1024, /* bytes: a read of this size belongs to a long stream, ... */
	STREAK = 4,            /* ... and from this many in a row on the stream is spliced */
	STREAK_MOST = 8,       /* where their count stops; each short read takes one off it */
};

/* Bytes that the receiving socket has not taken yet. */
struct vsp_kept {
	size_t start;
	size_t end;
	char data[];
};

/* One call of vsp_half_move. */
struct move {
	struct vsp_half *half;
	struct vsp_side *from;
	struct vsp_side *to;
	struct vsp_loop *loop;
	unsigned did; /* enum vsp_moved */
};

bool vsp_half_is_done(const struct vsp_half *half)
{
	return half->flow != VSP_FLOWING;
}

bool vsp_half_is_pending(const struct vsp_half *half, const struct vsp_side *to)
{
	return half->kept || (half->pipe && half->pipe->level > 0) || !to->writable ||
	       vsp_throttle_due(half->throttle);
}

void vsp_half_drop(struct vsp_half *half, struct vsp_pipes *pipes, enum vsp_flow flow)
{
	free(half->kept);
	half->kept = NULL;
	if (half->pipe)
		vsp_pipe_return(pipes, half->pipe);
	half->pipe = NULL;
	if (half->flow == VSP_FLOWING)
		half->flow = (unsigned char)flow;
}

/* ---- sending ---- */

/* End the direction as the receiving side is broken, as errno says. */
static void move_break(struct move *move)
{
	move->to->gone = true;
	/* EPIPE is not a reset: such a peer may still send. */
	if (errno != EPIPE)
		move->to->error = (short)errno;
	vsp_half_drop(move->half, &move->loop->pipes, VSP_TRUNCATED);
	move->did |= VSP_ENDED;
}

/* Count bytes that the receiving side has taken. */
static void move_count(struct move *move, size_t sent)
{
	uint64_t bytes = atomic_load_explicit(&move->half->bytes, memory_order_relaxed);

	if (sent == 0)
		return;
	atomic_store_explicit(&move->half->bytes, bytes + sent, memory_order_relaxed);
	move->did |= VSP_SENT;
}

/* Send as much as the side takes: how much, possibly 0.  Drops the direction if it breaks. */
static size_t move_send(struct move *move, const char *data, size_t size)
{
	struct vsp_side *to = move->to;
	size_t sent = 0;

	while (sent < size && to->writable) {
		ssize_t count = send(to->fd, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (count >= 0) {
			sent += (size_t)count;
		} else if (errno == EAGAIN) {
			vsp_side_block(to, move->loop->epoll);
		} else if (errno != EINTR) {
			move_break(move);
			break;
		}
	}
	move_count(move, sent);
	return sent;
}

/* Keep bytes that the receiving side did not take; without memory for them drop the direction. */
static void move_keep(struct move *move, const char *data, size_t size)
{
	struct vsp_kept *kept = malloc(sizeof(*kept) + size);

	if (!kept) {
		vsp_half_drop(move->half, &move->loop->pipes, VSP_TRUNCATED);
		move->did |= VSP_STARVED;
		return;
	}
	memcpy(kept->data, data, size);
	kept->start = 0;
	kept->end = size;
	move->half->kept = kept;
}

/* Send bytes, and keep what the receiving side does not take. */
static void move_send_or_keep(struct move *move, const char *data, size_t size)
{
	size_t sent = move_send(move, data, size);

	if (!vsp_half_is_done(move->half) && sent < size)
		move_keep(move, data + sent, size - sent);
}

/* Whether an errno of splice says that it is not allowed or not possible here. */
static bool errno_is_splices(int error)
{
	return error == EINVAL || error == EPERM || error == EACCES || error == ENOSYS ||
	       error == ENOMEM;
}

/*
 * Send the bytes of a pipe that cannot be spliced into the side by a copy.  PIPE_SIZE bytes are no
 * more than the scratch buffer has.
 */
static void move_unsplice(struct move *move)
{
	struct vsp_pipe *pipe = move->half->pipe;
	ssize_t count = read(pipe->out, move->loop->scratch, pipe->level);

	move->half->streak = 0;
	if (count < 0 || (size_t)count != pipe->level) {
		vsp_half_drop(move->half, &move->loop->pipes, VSP_TRUNCATED);
		move->did |= VSP_STARVED;
		return;
	}
	pipe->level = 0;
	vsp_pipe_return(&move->loop->pipes, pipe);
	move->half->pipe = NULL;
	move_send_or_keep(move, move->loop->scratch, (size_t)count);
}

/* Send the bytes in the pipe.  Drops the direction if the side breaks. */
static void move_drain(struct move *move)
{
	struct vsp_pipe *pipe = move->half->pipe;
	struct vsp_side *to = move->to;
	size_t sent = 0;

	while (pipe->level > 0 && to->writable) {
		/* SIGPIPE is blocked in this thread. */
		ssize_t count = splice(pipe->out, NULL, to->fd, NULL, pipe->level,
				       SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

		if (count > 0) {
			sent += (size_t)count;
			pipe->level -= (size_t)count;
		} else if (count == 0 || errno == EAGAIN) {
			vsp_side_block(to, move->loop->epoll);
		} else if (errno_is_splices(errno)) {
			move_unsplice(move);
			break;
		} else if (errno != EINTR) {
			move_break(move);
			break;
		}
	}
	move_count(move, sent);
}

/* Send the bytes of earlier reads.  Whether all are sent and the direction may read more. */
static bool move_flush(struct move *move)
{
	struct vsp_half *half = move->half;
	struct vsp_kept *kept = half->kept;

	if (kept) {
		size_t sent = move_send(move, kept->data + kept->start, kept->end - kept->start);

		if (vsp_half_is_done(half)) /* dropped, and `kept` with it */
			return false;
		kept->start += sent;
		if (kept->start < kept->end)
			return false;
		free(kept);
		half->kept = NULL;
	}
	if (half->pipe && half->pipe->level > 0)
		move_drain(move);
	return !vsp_half_is_done(half) && !half->kept && !(half->pipe && half->pipe->level > 0);
}

/* ---- reading ---- */

/* Take note of the size of a read: reads that are long in a row begin a long stream. */
static void half_note_read(struct vsp_half *half, size_t count)
{
	if (count >= LONG_READ)
		half->streak += half->streak < STREAK_MOST;
	else if (half->streak < STREAK)
		half->streak = 0;
	else
		half->streak--;
}

/* Whether the direction is spliced now: its stream is long, and there is a pipe for it. */
static bool move_splices(struct move *move)
{
	struct vsp_half *half = move->half;

	if (half->pipe)
		return true;
	/* Measured: from a Unix socket splice costs more than a copy; into AF_VSOCK it copies. */
	if (half->streak < STREAK || !vsp_side_is_tcp(move->from) || !vsp_side_is_plain(move->to))
		return false;
	half->pipe = vsp_pipe_take(&move->loop->pipes);
	if (!half->pipe)
		return false;
	/*
	 * For TCP, the socket's own flag decides whether splice waits, and not this thread alone: the
	 * owner of a duplicate can change it at any time.
	 */
	fcntl(move->from->fd, F_SETFL, O_NONBLOCK);
	fcntl(move->to->fd, F_SETFL, O_NONBLOCK);
	return true;
}

/* The direction's source has failed: it takes nothing more either. */
static void move_fail(struct move *move, int error)
{
	move->from->error = (short)error;
	move->from->gone = true;
}

/*
 * Fill the direction's empty pipe: with how many bytes, or 0 when the stream has paused.  Then the
 * pipe goes back, and where the source is still readable recv has to say why.  A failed socket
 * reports its error only once, and recv may have bytes behind urgent data first, or say a clean EOF:
 * so it is kept here.
 */
static size_t move_fill(struct move *move, size_t allowed)
{
	struct vsp_half *half = move->half;
	ssize_t count = splice(move->from->fd, NULL, half->pipe->in, NULL, allowed,
			       SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

	if (count > 0) {
		half->pipe->level = (size_t)count;
		half_note_read(half, (size_t)count);
		return (size_t)count;
	}
	if (count < 0 && errno == EAGAIN) {
		/* No byte, no EOF and no error; urgent data in front of others says so too. */
		move->from->readable = move->from->urgent || move->from->gone;
	} else if (count < 0 && errno != EINTR) {
		half->streak = 0;
		if (!errno_is_splices(errno))
			move_fail(move, errno);
	}
	vsp_pipe_return(&move->loop->pipes, half->pipe);
	half->pipe = NULL;
	return 0;
}

/* End the direction: its source has sent a FIN, or has failed with `error`. */
static void move_finish(struct move *move, int error)
{
	struct vsp_side *from = move->from;

	/* A process that ends closes its sockets as one does that has finished. */
	if (!error && vsp_peers_is_exiting(&move->loop->peers, from->vmm, from->fd)) {
		error = ECONNRESET;
		from->fin = false;
	}
	if (error)
		move_fail(move, error);
	else if (!from->error)
		from->fin = true;
	move->half->flow = vsp_side_is_truncated(from) ? VSP_TRUNCATED : VSP_WHOLE;
	move->did |= VSP_ENDED;
}

/* Read once and pass the bytes on: how many, 0 when there are none for now. */
static size_t move_copy(struct move *move, size_t allowed)
{
	char *scratch = move->loop->scratch;
	ssize_t count;

	do
		count = vsp_side_receive(move->from, scratch, allowed);
	while (count < 0 && errno == EINTR);
	if (count > 0) {
		half_note_read(move->half, (size_t)count);
		move_send_or_keep(move, scratch, (size_t)count);
		return (size_t)count;
	}
	move->from->readable = false;
	if (count < 0 && errno == EAGAIN)
		return 0;
	move_finish(move, count < 0 ? errno : 0);
	return 0;
}

unsigned vsp_half_move(struct vsp_half *half, struct vsp_side *from, struct vsp_side *to,
		       struct vsp_loop *loop)
{
	struct move move = {.half = half, .from = from, .to = to, .loop = loop};
	size_t moved = 0;

	vsp_throttle_wake(half->throttle, loop->now_ms);
	while (!vsp_half_is_done(half) && move_flush(&move) && from->readable && to->writable) {
		size_t allowed;
		size_t count = 0;

		if (moved >= BUDGET) {
			move.did |= VSP_MORE;
			break;
		}
		allowed = vsp_throttle_take(half->throttle, SCRATCH, loop->now_ms);
		if (allowed == 0)
			break;
		if (move_splices(&move))
			count = move_fill(&move, allowed);
		if (count == 0 && from->readable)
			count = move_copy(&move, allowed);
		vsp_throttle_return(half->throttle, allowed - count);
		moved += count;
	}
	return move.did;
}
