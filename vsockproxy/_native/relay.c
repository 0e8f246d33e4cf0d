/*
 * One relay: how its bytes move, and how it ends.
 *
 * What an edge said is remembered in `struct vsp_side`; half_move goes on until the kernel says
 * EAGAIN, and vsp_relay_turn then reads off the two directions whether the relay is over.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

void vsp_relay_unref(struct vsp_relay *relay)
{
	if (atomic_fetch_sub(&relay->references, 1) != 1)
		return;
	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++)
		for (int i = 0; i < LIMITS; i++)
			vsp_limit_unref(relay->halves[direction].limits[i]);
	free(relay);
}

/* The bounds on silence count from now on. */
static void relay_touch(struct vsp_relay *relay)
{
	atomic_store_explicit(&relay->active_ms, relay->thread->now_ms, memory_order_relaxed);
}

static int side_domain(const struct vsp_side *side)
{
	int domain = AF_UNSPEC;
	socklen_t size = sizeof(domain);

	getsockopt(side->fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
	return domain;
}

/* Let a TCP peer see a reset where a plain close would look like the stream's end. */
static void side_abort(const struct vsp_side *side)
{
	const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
	int domain = side_domain(side);

	/* Only TCP: on AF_VSOCK a linger would block close(). */
	if (domain == AF_INET || domain == AF_INET6)
		setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

static void half_drop(struct vsp_half *half)
{
	free(half->kept);
	half->kept = NULL;
	half->done = true;
}

static void side_close(struct vsp_thread *thread, struct vsp_side *side)
{
	/*
	 * Removed by hand: close() does it only for the last descriptor of the socket, and a
	 * process that is just being forked may hold another.
	 */
	epoll_ctl(thread->epoll, EPOLL_CTL_DEL, side->fd, NULL);
	close(side->fd);
	side->fd = -1;
}

void vsp_relay_end(struct vsp_relay *relay, enum vsp_reason reason)
{
	struct vsp_thread *thread = relay->thread;
	bool upstream_whole = relay->halves[UPSTREAM].done && !relay->halves[UPSTREAM].dropped;

	if (relay->ended)
		return;
	relay->ended = true;
	relay->reason = reason;
	if (reason == VSP_TARGET_RESET || reason == VSP_CANCELLED || reason == VSP_MAX_LIFETIME)
		side_abort(&relay->sides[CLIENT]);
	if (reason == VSP_CLIENT_RESET && !upstream_whole)
		side_abort(&relay->sides[TARGET]);
	if (reason == VSP_CLIENT_RESET)
		relay->error = relay->sides[CLIENT].error;
	if (reason == VSP_TARGET_RESET)
		relay->error = relay->sides[TARGET].error;
	half_drop(&relay->halves[UPSTREAM]);
	half_drop(&relay->halves[DOWNSTREAM]);
	side_close(thread, &relay->sides[CLIENT]);
	side_close(thread, &relay->sides[TARGET]);
	vsp_timer_remove(relay);
	if (relay->previous_live)
		relay->previous_live->next_live = relay->next_live;
	else
		thread->live = relay->next_live;
	if (relay->next_live)
		relay->next_live->previous_live = relay->previous_live;
	thread->live_count--;
	/* The caller learns of it when this turn is over: an event of it may still be at hand. */
	relay->next_ended = thread->ended;
	thread->ended = relay;
}

static void relay_be_busy(struct vsp_relay *relay)
{
	if (relay->busy)
		return;
	relay->busy = true;
	atomic_fetch_add(&relay->references, 1);
	relay->next_busy = relay->thread->busy;
	relay->thread->busy = relay;
}

/* Send as much as the side takes: how much, possibly 0.  Drops the direction if it breaks. */
static size_t side_send(struct vsp_relay *relay, int direction, const char *data, size_t size)
{
	struct vsp_half *half = &relay->halves[direction];
	struct vsp_side *to = &relay->sides[!direction];
	size_t sent = 0;

	while (sent < size && to->writable) {
		ssize_t count = send(to->fd, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (count >= 0) {
			sent += (size_t)count;
		} else if (errno == EAGAIN) {
			to->writable = false;
		} else if (errno != EINTR) {
			to->gone = true;
			/* EPIPE is not a reset: such a peer may still have things to say. */
			if (errno != EPIPE)
				to->error = errno;
			half_drop(half);
			half->dropped = true;
			relay_touch(relay); /* the half-close begins here */
			break;
		}
	}
	if (sent > 0) {
		uint64_t bytes = atomic_load_explicit(&half->bytes, memory_order_relaxed);

		atomic_store_explicit(&half->bytes, bytes + sent, memory_order_relaxed);
		relay_touch(relay);
		relay->answered = direction == DOWNSTREAM;
	}
	return sent;
}

/* Send what was kept.  Whether there is none left and the direction may go on. */
static bool half_flush(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	if (!half->kept)
		return true;
	half->kept_start += side_send(relay, direction, half->kept + half->kept_start,
				      half->kept_end - half->kept_start);
	if (half->done || half->kept_start < half->kept_end)
		return false;
	free(half->kept);
	half->kept = NULL;
	return true;
}

/* Keep what the receiving side did not take.  Without memory for it the relay ends. */
static void half_keep(struct vsp_relay *relay, int direction, const char *data, size_t size)
{
	struct vsp_half *half = &relay->halves[direction];

	half->kept = malloc(size);
	if (!half->kept) {
		relay->sides[TARGET].error = ENOMEM;
		vsp_relay_end(relay, VSP_TARGET_RESET);
		return;
	}
	memcpy(half->kept, data, size);
	half->kept_start = 0;
	half->kept_end = size;
}

/*
 * Whether the side's stream is all there although it ends with an error.  A FIN that came
 * before a reset says so.  A Unix peer's close loses nothing that it wrote: ECONNRESET only
 * says that it left something unread, which does not make a client's upload incomplete.
 */
static bool side_is_whole(const struct vsp_relay *relay, int which)
{
	const struct vsp_side *side = &relay->sides[which];

	return side->fin || (which == CLIENT && side_domain(side) == AF_UNIX);
}

/* The reading side has nothing more: pass the EOF on, or see that the stream was cut. */
static void half_finish(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	half->done = true;
	/* The half-close time-out counts from here, not from the last byte. */
	relay_touch(relay);
	if (relay->sides[direction].error && !side_is_whole(relay, direction)) {
		half->dropped = true;
		return;
	}
	/*
	 * Held only while an answer is owed: a client that has had its answer is just leaving,
	 * and the target, which may wait for its next request, has to hear of it.
	 */
	if (direction == DOWNSTREAM || !relay->hold || relay->answered)
		shutdown(relay->sides[!direction].fd, SHUT_WR);
}

/*
 * How much may be read now: up to the scratch buffer, less where a limit has less.  What is
 * not used goes back by allowance_return.  At 0 the direction waits for THROTTLED_MS.
 */
static size_t allowance_take(struct vsp_relay *relay, struct vsp_half *half)
{
	uint64_t now_ms = relay->thread->now_ms;
	size_t size = SCRATCH;

	if (half->due_ms)
		return 0;
	for (int i = 0; i < LIMITS; i++) {
		size_t less;

		if (!half->limits[i])
			continue;
		less = vsp_limit_take(half->limits[i], size, now_ms);
		/* The limits before this one had more to give than it has. */
		for (int before = 0; before < i; before++)
			if (half->limits[before])
				vsp_limit_return(half->limits[before], size - less);
		size = less;
	}
	if (size == 0)
		half->due_ms = now_ms + THROTTLED_MS;
	return size;
}

static void allowance_return(struct vsp_half *half, size_t unused)
{
	for (int i = 0; i < LIMITS && unused > 0; i++)
		if (half->limits[i])
			vsp_limit_return(half->limits[i], unused);
}

/* Move one direction until a side would block, its budget is used, or it is done. */
static void half_move(struct vsp_relay *relay, int direction)
{
	char *scratch = relay->thread->scratch;
	struct vsp_half *half = &relay->halves[direction];
	struct vsp_side *from = &relay->sides[direction];
	struct vsp_side *to = &relay->sides[!direction];
	size_t moved = 0;

	if (half->due_ms <= relay->thread->now_ms)
		half->due_ms = 0;
	while (!half->done && half_flush(relay, direction) && from->readable && to->writable) {
		ssize_t count;
		size_t allowed;
		size_t sent;

		if (moved >= BUDGET) {
			relay_be_busy(relay);
			return;
		}
		allowed = allowance_take(relay, half);
		if (allowed == 0)
			return;
		count = recv(from->fd, scratch, allowed, MSG_DONTWAIT);
		allowance_return(half, allowed - (count > 0 ? (size_t)count : 0));
		if (count > 0) {
			moved += (size_t)count;
			sent = side_send(relay, direction, scratch, (size_t)count);
			if (!half->done && sent < (size_t)count)
				half_keep(relay, direction, scratch + sent, (size_t)count - sent);
			continue;
		}
		if (count < 0 && errno == EINTR)
			continue;
		from->readable = false;
		if (count < 0 && errno == EAGAIN)
			return;
		if (count < 0) {
			from->error = errno;
			from->gone = true;
		} else if (!from->error) {
			from->fin = true;
		}
		half_finish(relay, direction);
	}
}

/* The receiving side is gone: let a send find that out, or end a direction with no news. */
static void half_give_up(struct vsp_relay *relay, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	if (!relay->sides[!direction].gone || half->done)
		return;
	relay->sides[!direction].writable = true;
	half_move(relay, direction);
	if (!relay->busy && half->due_ms == 0 && !half->done) {
		half->done = true;
		relay_touch(relay);
	}
}

/* The bound that is in force, or 0. */
static uint64_t relay_bound_ms(const struct vsp_relay *relay)
{
	bool half_closed = relay->halves[UPSTREAM].done != relay->halves[DOWNSTREAM].done;

	if (!half_closed || relay->half_close_ms == 0)
		return relay->idle_ms;
	if (relay->idle_ms == 0 || relay->half_close_ms < relay->idle_ms)
		return relay->half_close_ms;
	return relay->idle_ms;
}

/* When the thread has to look at the relay without being told, or NEVER. */
static uint64_t relay_deadline_ms(const struct vsp_relay *relay)
{
	uint64_t bound_ms = relay_bound_ms(relay);
	uint64_t deadline_ms = relay->end_ms;

	if (bound_ms && vsp_relay_active(relay) + bound_ms < deadline_ms)
		deadline_ms = vsp_relay_active(relay) + bound_ms;

	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++) {
		const struct vsp_half *half = &relay->halves[direction];

		if (!half->done && half->due_ms && half->due_ms < deadline_ms)
			deadline_ms = half->due_ms;
	}
	return deadline_ms;
}

/*
 * See that the thread wakes no later than it has to for this relay.  A deadline that is too
 * early stays: vsp_relay_due looks again, which costs less than a move in the heap for every
 * byte.  Room was made in vsp_relay_start.
 */
static void relay_set_timer(struct vsp_relay *relay)
{
	uint64_t deadline_ms = relay_deadline_ms(relay);

	if (deadline_ms == NEVER || (relay->timer != NO_TIMER && relay->deadline_ms <= deadline_ms))
		return;
	vsp_timer_set(relay, deadline_ms);
}

static enum vsp_reason relay_reason(const struct vsp_relay *relay)
{
	if (relay->sides[TARGET].error)
		return VSP_TARGET_RESET;
	if (relay->sides[CLIENT].error)
		return VSP_CLIENT_RESET;
	if (relay->halves[UPSTREAM].dropped)
		return VSP_TARGET_RESET;
	if (relay->halves[DOWNSTREAM].dropped)
		return VSP_CLIENT_RESET;
	return VSP_FINISHED;
}

/* Move both directions as far as they go, then see what that means for the relay. */
void vsp_relay_turn(struct vsp_relay *relay)
{
	const struct vsp_side *client = &relay->sides[CLIENT];

	half_move(relay, UPSTREAM);
	half_move(relay, DOWNSTREAM);
	half_give_up(relay, UPSTREAM);
	half_give_up(relay, DOWNSTREAM);
	if (relay->ended)
		return;
	if (relay->halves[UPSTREAM].done && relay->halves[DOWNSTREAM].done)
		vsp_relay_end(relay, relay_reason(relay));
	else if (client->error && !side_is_whole(relay, CLIENT))
		vsp_relay_end(relay, VSP_CLIENT_RESET); /* at once, whatever the target still owes */
	else
		relay_set_timer(relay);
}

void vsp_relay_due(struct vsp_relay *relay)
{
	uint64_t now_ms = relay->thread->now_ms;
	uint64_t bound_ms = relay_bound_ms(relay);
	uint64_t deadline_ms;

	if (relay->end_ms <= now_ms) {
		vsp_relay_end(relay, VSP_MAX_LIFETIME);
		return;
	}
	if (bound_ms && vsp_relay_active(relay) + bound_ms <= now_ms) {
		vsp_relay_end(relay, bound_ms == relay->idle_ms ? VSP_IDLE_TIMEOUT
								: VSP_HALF_CLOSE_TIMEOUT);
		return;
	}
	/* A throttled direction, or a deadline that bytes have put off. */
	if (relay_deadline_ms(relay) <= now_ms)
		vsp_relay_turn(relay);
	if (relay->ended)
		return;
	deadline_ms = relay_deadline_ms(relay);
	if (deadline_ms == NEVER)
		vsp_timer_remove(relay);
	else
		vsp_timer_set(relay, deadline_ms);
}

void vsp_side_event(struct vsp_side *side, uint32_t events)
{
	struct vsp_relay *relay = side->relay;
	socklen_t size = sizeof(side->error);

	if (relay->ended)
		return;
	if ((events & EPOLLERR) && !side->error)
		getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &side->error, &size);
	if ((events & (EPOLLRDHUP | EPOLLHUP)) && !side->error)
		side->fin = true;
	if (events & (EPOLLHUP | EPOLLERR))
		side->gone = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		side->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		side->writable = true;
	vsp_relay_turn(relay);
}

static int side_watch(struct vsp_thread *thread, struct vsp_side *side)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data.ptr = side,
	};

	return epoll_ctl(thread->epoll, EPOLL_CTL_ADD, side->fd, &event) < 0 ? -errno : 0;
}

void vsp_relay_start(struct vsp_relay *relay)
{
	struct vsp_thread *thread = relay->thread;
	int error;

	relay->started = true;
	relay_touch(relay);
	if (relay->end_ms != NEVER)
		relay->end_ms += thread->now_ms;
	relay->next_live = thread->live;
	if (thread->live)
		thread->live->previous_live = relay;
	thread->live = relay;
	error = vsp_timer_reserve(thread);
	thread->live_count++;
	if (!error)
		error = side_watch(thread, &relay->sides[CLIENT]);
	if (!error)
		error = side_watch(thread, &relay->sides[TARGET]);
	if (error) {
		relay->sides[TARGET].error = -error;
		vsp_relay_end(relay, VSP_TARGET_RESET);
		return;
	}
	/* The request is often here already: no need to be told. */
	vsp_relay_turn(relay);
}
