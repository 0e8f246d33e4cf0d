/*
 * A relay's turn in its thread.
 *
 * An edge is remembered in its side; vsp_half_move goes on until a socket has no more and returns
 * what it did; this file acts on it, and reads off the two directions whether the relay is over.
 */

#define _GNU_SOURCE

#include <stddef.h>
#include <sys/socket.h>

#include "closing.h"
#include "dial.h"
#include "half_close.h"
#include "turn.h"

/* The time-outs on silence count from now on. */
static void relay_touch(struct vsp_relay *relay, const struct vsp_loop *loop)
{
	atomic_store_explicit(&relay->active_ms, loop->now_ms, memory_order_relaxed);
}

/* Have the relay move again in the next turn, after other relays. */
static void relay_be_busy(struct vsp_relay *relay, struct vsp_loop *loop)
{
	if (relay->busy)
		return;
	relay->busy = true;
	atomic_fetch_add(&relay->references, 1);
	relay->next_busy = loop->busy;
	loop->busy = relay;
}

/* ---- deadlines ---- */

/* Whether the time-out on silence that is in force is the one after an EOF. */
static bool relay_is_half_close_bound(const struct vsp_relay *relay)
{
	bool half_closed = vsp_half_is_done(&relay->halves[UPSTREAM]) !=
			   vsp_half_is_done(&relay->halves[DOWNSTREAM]);

	return half_closed && relay->half_close_ms &&
	       (relay->idle_ms == 0 || relay->half_close_ms <= relay->idle_ms);
}

/* Return the time-out on silence that is in force, in milliseconds, or 0. */
static uint64_t relay_timeout_ms(const struct vsp_relay *relay)
{
	return relay_is_half_close_bound(relay) ? relay->half_close_ms : relay->idle_ms;
}

/* Return when silence ends the relay, or NEVER. */
static uint64_t relay_silent_ms(const struct vsp_relay *relay)
{
	uint64_t timeout_ms = relay_timeout_ms(relay);

	return timeout_ms ? vsp_relay_active(relay) + timeout_ms : NEVER;
}

/* Return when a held FIN, or a direction without bandwidth, is to move again, or NEVER. */
static uint64_t relay_retry_ms(const struct vsp_relay *relay)
{
	uint64_t retry_ms = vsp_held_fin_due(relay);

	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++) {
		const struct vsp_half *half = &relay->halves[direction];
		uint64_t due_ms = vsp_throttle_due(half->throttle);

		if (!vsp_half_is_done(half) && due_ms && due_ms < retry_ms)
			retry_ms = due_ms;
	}
	return retry_ms;
}

/* Return when the thread has to look at the relay without an edge, or NEVER. */
static uint64_t relay_deadline_ms(const struct vsp_relay *relay)
{
	uint64_t silent_ms = relay_silent_ms(relay);
	uint64_t deadline_ms = silent_ms < relay->end_ms ? silent_ms : relay->end_ms;
	uint64_t retry_ms = relay_retry_ms(relay);

	return retry_ms < deadline_ms ? retry_ms : deadline_ms;
}

/*
 * Have the thread wake no later than it has to for this relay.  A deadline that is too early
 * stays: relay_due looks again, which costs less than a move in the heap for every byte.
 */
static void relay_set_timer(struct vsp_relay *relay, struct vsp_loop *loop)
{
	uint64_t deadline_ms = relay_deadline_ms(relay);
	const struct vsp_timer *timer = &relay->timer;

	if (deadline_ms == NEVER || (timer->place != NOT_SET && timer->deadline_ms <= deadline_ms))
		return;
	vsp_timer_set(&loop->timers, &relay->timer, deadline_ms);
}

/* ---- moving ---- */

/* Move one direction, and act on what that did. */
static void relay_move(struct vsp_relay *relay, struct vsp_loop *loop, int direction)
{
	unsigned did = vsp_half_move(&relay->halves[direction], &relay->sides[direction],
				     &relay->sides[!direction], loop);

	/* The half-close time-out counts from the end of a direction, not from its last byte. */
	if (did & (VSP_SENT | VSP_ENDED))
		relay_touch(relay, loop);
	if (did & VSP_ENDED)
		vsp_half_close(relay, direction);
	if (did & VSP_MORE)
		relay_be_busy(relay, loop);
	if (did & VSP_STARVED)
		vsp_closing_begin(relay, loop, VSP_NO_MEMORY);
}

/* Whether a receiver that is gone may have lost bytes of the direction: TCP is gone by a reset. */
static bool relay_has_lost(const struct vsp_relay *relay, int direction)
{
	const struct vsp_half *half = &relay->halves[direction];

	return half->kept || half->pipe ||
	       (half->bytes > 0 && vsp_side_is_tcp(&relay->sides[!direction]));
}

/*
 * The receiving side is gone: let a send find that out, or end a direction that has nothing to
 * send.
 */
static void relay_give_up(struct vsp_relay *relay, struct vsp_loop *loop, int direction)
{
	struct vsp_half *half = &relay->halves[direction];

	if (relay->closing || !relay->sides[!direction].gone || vsp_half_is_done(half))
		return;
	relay->sides[!direction].writable = true;
	relay_move(relay, loop, direction);
	if (!relay->busy && vsp_throttle_due(half->throttle) == 0 && !vsp_half_is_done(half)) {
		vsp_half_drop(half, &loop->pipes,
			      relay_has_lost(relay, direction) ? VSP_TRUNCATED : VSP_GIVEN_UP);
		relay_touch(relay, loop);
	}
}

/* Return why a relay is over whose directions are both done. */
static enum vsp_reason relay_reason(const struct vsp_relay *relay)
{
	if (relay->sides[TARGET].error)
		return VSP_TARGET_RESET;
	if (relay->sides[CLIENT].error)
		return VSP_CLIENT_RESET;
	if (relay->halves[UPSTREAM].flow == VSP_TRUNCATED)
		return VSP_TARGET_RESET;
	if (relay->halves[DOWNSTREAM].flow == VSP_TRUNCATED)
		return VSP_CLIENT_RESET;
	return VSP_FINISHED;
}

void vsp_turn_move(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay_move(relay, loop, UPSTREAM);
	relay_move(relay, loop, DOWNSTREAM);
	relay_give_up(relay, loop, UPSTREAM);
	relay_give_up(relay, loop, DOWNSTREAM);
	if (relay->closing)
		return;
	if (vsp_half_is_done(&relay->halves[UPSTREAM]) &&
	    vsp_half_is_done(&relay->halves[DOWNSTREAM])) {
		vsp_closing_begin(relay, loop, relay_reason(relay));
	} else if (vsp_side_is_truncated(&relay->sides[CLIENT])) {
		/* Immediately, whatever the target still owes: no client is left to take it. */
		vsp_closing_begin(relay, loop, VSP_CLIENT_RESET);
	} else {
		if (vsp_held_fin_serve(relay, loop))
			relay_touch(relay, loop); /* half_close_ms counts from the FIN */
		relay_set_timer(relay, loop);
	}
}

/* ---- what begins a turn ---- */

/* Begin to move bytes: both sides are connected. */
static void relay_begin(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay->sides[CLIENT].lossless = relay->sides[CLIENT].domain == AF_UNIX;
	relay_touch(relay, loop);
	/* The request is often here already: moving now saves the wait for its edge. */
	vsp_turn_move(relay, loop);
	if (!relay->ended && vsp_relay_watch(relay, loop) < 0)
		vsp_closing_begin(relay, loop, VSP_NO_MEMORY);
}

/* Add a relay to the live ones.  Whether it goes on. */
static bool relay_enter(struct vsp_relay *relay, struct vsp_loop *loop)
{
	if (relay->end_ms != NEVER)
		relay->end_ms += loop->now_ms;
	if (vsp_relay_enter(relay, loop) == 0)
		return true;
	vsp_closing_begin(relay, loop, VSP_NO_MEMORY);
	return false;
}

/* Act on how a dial goes. */
static void relay_dialled(struct vsp_relay *relay, struct vsp_loop *loop, enum vsp_dialled how)
{
	if (how == VSP_FAILED)
		vsp_closing_begin(relay, loop, VSP_DIAL_FAILED);
	if (how != VSP_REACHED)
		return;
	vsp_relay_tell(relay, loop, VSP_NEWS_CONNECTED);
	relay_begin(relay, loop);
}

void vsp_turn_start(struct vsp_relay *relay, struct vsp_loop *loop)
{
	/* First of all: how they are closed depends on it. */
	for (int which = CLIENT; which <= TARGET; which++)
		vsp_side_ask_domain(&relay->sides[which]);
	if (relay_enter(relay, loop))
		relay_begin(relay, loop);
}

void vsp_turn_accept(struct vsp_relay *relay, struct vsp_loop *loop)
{
	atomic_fetch_add(&loop->load, 1);
	vsp_relay_tell(relay, loop, VSP_NEWS_OPENED);
	if (relay_enter(relay, loop))
		relay_dialled(relay, loop, vsp_dial_begin(relay, loop));
}

void vsp_turn_event(struct vsp_side *side, struct vsp_loop *loop, uint32_t events)
{
	struct vsp_relay *relay = side->relay;

	if (side->fd < 0)
		return;
	if (vsp_dial_is_under_way(relay)) {
		enum vsp_dialled how = vsp_dial_event(relay, loop, events);

		if (how == VSP_REACHED) /* the edge may be about the stream as well */
			vsp_side_note(side, loop->epoll, events);
		relay_dialled(relay, loop, how);
		return;
	}
	vsp_side_note(side, loop->epoll, events);
	if (relay->closing)
		vsp_closing_move(relay, loop);
	else
		vsp_turn_move(relay, loop);
}

/* A relay's deadline has come: end it, move it, or see that bytes have put the deadline off. */
static void relay_due(struct vsp_relay *relay, struct vsp_loop *loop)
{
	uint64_t deadline_ms;

	if (relay->closing) {
		vsp_closing_due(relay, loop);
		return;
	}
	if (relay->end_ms <= loop->now_ms) {
		vsp_closing_begin(relay, loop, VSP_MAX_LIFETIME);
		return;
	}
	if (vsp_dial_is_under_way(relay)) {
		relay_dialled(relay, loop, vsp_dial_due(relay, loop));
		return;
	}
	/* Before the silence counts: it may be ours, as the thread did not run. */
	if (relay_retry_ms(relay) <= loop->now_ms)
		vsp_turn_move(relay, loop);
	if (relay->closing)
		return;
	if (relay_silent_ms(relay) <= loop->now_ms) {
		vsp_closing_begin(relay, loop,
				  relay_is_half_close_bound(relay) ? VSP_HALF_CLOSE_TIMEOUT
								   : VSP_IDLE_TIMEOUT);
		return;
	}
	deadline_ms = relay_deadline_ms(relay);
	if (deadline_ms == NEVER)
		vsp_timer_remove(&loop->timers, &relay->timer);
	else
		vsp_timer_set(&loop->timers, &relay->timer, deadline_ms);
}

void vsp_turn_timers(struct vsp_loop *loop)
{
	struct vsp_timer *timer;

	while ((timer = vsp_timers_due(&loop->timers, loop->now_ms)))
		relay_due((struct vsp_relay *)((char *)timer - offsetof(struct vsp_relay, timer)),
			  loop);
}
