/*
 * One relay: what its sockets' edges say, and how it ends.
 *
 * What an edge said is remembered in `struct vsp_side`; vsp_half_move goes on until a socket
 * has no more, and vsp_relay_turn then reads off the two directions whether the relay is over.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

void vsp_relay_unref(struct vsp_relay *relay)
{
	if (atomic_fetch_sub(&relay->references, 1) != 1)
		return;
	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++)
		vsp_throttle_free(relay->halves[direction].throttle);
	free(relay);
}

void vsp_relay_touch(struct vsp_relay *relay)
{
	atomic_store_explicit(&relay->active_ms, relay->thread->now_ms, memory_order_relaxed);
}

static unsigned char side_domain(const struct vsp_side *side)
{
	int domain = AF_UNSPEC;
	socklen_t size = sizeof(domain);

	getsockopt(side->fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
	return (unsigned char)domain;
}

static int side_control(struct vsp_thread *thread, struct vsp_side *side, int operation)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET,
		.data.ptr = side,
	};

	if (side->sendable)
		event.events |= EPOLLOUT;
	return epoll_ctl(thread->epoll, operation, side->fd, &event) < 0 ? -errno : 0;
}

void vsp_side_watch(struct vsp_thread *thread, struct vsp_side *side)
{
	/* Of a socket that is watched already nothing can fail. */
	(void)side_control(thread, side, EPOLL_CTL_MOD);
}

/* Let a TCP peer see a reset where a plain close would look like the stream's end. */
static void side_abort(const struct vsp_side *side)
{
	const struct linger at_once = {.l_onoff = 1, .l_linger = 0};

	/* Only TCP: on AF_VSOCK a linger would block close(). */
	if (side->domain == AF_INET || side->domain == AF_INET6)
		setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

static void side_close(struct vsp_thread *thread, struct vsp_side *side)
{
	int fd = side->fd;

	/*
	 * Removed by hand: close() does it only for the last descriptor of the socket, and a
	 * process that is just being forked may hold another.
	 */
	epoll_ctl(thread->epoll, EPOLL_CTL_DEL, fd, NULL);
	side->fd = -1; /* before the number can be another file's: vsp_relay_duplicate */
	close(fd);
}

void vsp_relay_end(struct vsp_relay *relay, enum vsp_reason reason)
{
	struct vsp_thread *thread = relay->thread;
	bool upstream_whole = relay->halves[UPSTREAM].done && !relay->halves[UPSTREAM].dropped;

	if (relay->ended)
		return;
	relay->ended = true;
	relay->reason = (unsigned char)reason;
	if (reason == VSP_TARGET_RESET || reason == VSP_CANCELLED || reason == VSP_MAX_LIFETIME)
		side_abort(&relay->sides[CLIENT]);
	if (reason == VSP_CLIENT_RESET && !upstream_whole)
		side_abort(&relay->sides[TARGET]);
	if (reason == VSP_CLIENT_RESET)
		relay->error = relay->sides[CLIENT].error;
	if (reason == VSP_TARGET_RESET)
		relay->error = relay->sides[TARGET].error;
	vsp_half_drop(relay, UPSTREAM);
	vsp_half_drop(relay, DOWNSTREAM);
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

void vsp_relay_be_busy(struct vsp_relay *relay)
{
	if (relay->busy)
		return;
	relay->busy = true;
	atomic_fetch_add(&relay->references, 1);
	relay->next_busy = relay->thread->busy;
	relay->thread->busy = relay;
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

		if (!half->done && vsp_half_due(half) && vsp_half_due(half) < deadline_ms)
			deadline_ms = vsp_half_due(half);
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

	vsp_half_move(relay, UPSTREAM);
	vsp_half_move(relay, DOWNSTREAM);
	vsp_half_give_up(relay, UPSTREAM);
	vsp_half_give_up(relay, DOWNSTREAM);
	if (relay->ended)
		return;
	if (relay->halves[UPSTREAM].done && relay->halves[DOWNSTREAM].done)
		vsp_relay_end(relay, relay_reason(relay));
	else if (client->error && !vsp_side_is_whole(relay, CLIENT))
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
	int error = 0;
	socklen_t size = sizeof(error);

	if (relay->ended)
		return;
	if ((events & EPOLLERR) && !side->error) {
		getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		side->error = (short)error;
	}
	if ((events & (EPOLLRDHUP | EPOLLHUP)) && !side->error)
		side->fin = true;
	if (events & (EPOLLHUP | EPOLLERR))
		side->gone = true;
	if (events & EPOLLPRI)
		side->urgent = true;
	if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		side->readable = true;
	if ((events & EPOLLOUT) && side->writable && side->sendable) {
		side->sendable = false;
		vsp_side_watch(relay->thread, side);
	}
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		side->writable = true;
	vsp_relay_turn(relay);
}

void vsp_relay_start(struct vsp_relay *relay)
{
	struct vsp_thread *thread = relay->thread;
	int error;

	relay->started = true;
	vsp_relay_touch(relay);
	if (relay->end_ms != NEVER)
		relay->end_ms += thread->now_ms;
	relay->next_live = thread->live;
	if (thread->live)
		thread->live->previous_live = relay;
	thread->live = relay;
	error = vsp_timer_reserve(thread);
	thread->live_count++;
	for (int which = CLIENT; which <= TARGET && !error; which++) {
		relay->sides[which].domain = side_domain(&relay->sides[which]);
		error = side_control(thread, &relay->sides[which], EPOLL_CTL_ADD);
	}
	if (error) {
		relay->sides[TARGET].error = (short)-error;
		vsp_relay_end(relay, VSP_TARGET_RESET);
		return;
	}
	/* The request is often here already: no need to be told. */
	vsp_relay_turn(relay);
}
