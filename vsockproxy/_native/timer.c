/* A binary heap of the relays that something bounds, the earliest deadline first. */

#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define NEVER UINT64_MAX

static void timer_place(struct vsp_thread *thread, struct vsp_relay *relay, size_t place)
{
	thread->timers[place] = relay;
	relay->timer = (ptrdiff_t)place;
}

static void timer_sift(struct vsp_thread *thread, struct vsp_relay *relay)
{
	size_t place = (size_t)relay->timer;

	while (place > 0) {
		struct vsp_relay *parent = thread->timers[(place - 1) / 2];

		if (parent->deadline_ms <= relay->deadline_ms)
			break;
		timer_place(thread, parent, place);
		place = (place - 1) / 2;
	}
	for (;;) {
		size_t child = 2 * place + 1;

		if (child >= thread->timer_count)
			break;
		if (child + 1 < thread->timer_count &&
		    thread->timers[child + 1]->deadline_ms < thread->timers[child]->deadline_ms)
			child++;
		if (thread->timers[child]->deadline_ms >= relay->deadline_ms)
			break;
		timer_place(thread, thread->timers[child], place);
		place = child;
	}
	timer_place(thread, relay, place);
}

void vsp_timer_remove(struct vsp_relay *relay)
{
	struct vsp_thread *thread = relay->thread;
	struct vsp_relay *last;

	if (relay->timer == NO_TIMER)
		return;
	last = thread->timers[--thread->timer_count];
	if (last != relay) {
		timer_place(thread, last, (size_t)relay->timer);
		timer_sift(thread, last);
	}
	relay->timer = NO_TIMER;
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
	uint64_t deadline_ms = bound_ms ? relay->active_ms + bound_ms : NEVER;

	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++) {
		const struct vsp_half *half = &relay->halves[direction];

		if (!half->done && half->due_ms && half->due_ms < deadline_ms)
			deadline_ms = half->due_ms;
	}
	return deadline_ms;
}

/*
 * See that the thread wakes no later than it has to for this relay.  A deadline that is too
 * early stays: vsp_timers_serve looks again, which costs less than a move in the heap for
 * every byte.  Room was made in vsp_relay_start.
 */
void vsp_timer_update(struct vsp_relay *relay)
{
	struct vsp_thread *thread = relay->thread;
	uint64_t deadline_ms = relay_deadline_ms(relay);

	if (deadline_ms == NEVER || (relay->timer != NO_TIMER && relay->deadline_ms <= deadline_ms))
		return;
	relay->deadline_ms = deadline_ms;
	if (relay->timer == NO_TIMER)
		timer_place(thread, relay, thread->timer_count++);
	timer_sift(thread, relay);
}

/* 0 or -ENOMEM. */
int vsp_timer_reserve(struct vsp_thread *thread)
{
	struct vsp_relay **timers;
	size_t room = thread->timer_room ? 2 * thread->timer_room : 64;

	if (thread->live_count < thread->timer_room)
		return 0;
	timers = realloc(thread->timers, room * sizeof(*timers));
	if (!timers)
		return -ENOMEM;
	thread->timers = timers;
	thread->timer_room = room;
	return 0;
}

/* Put a relay whose deadline has come where its next one belongs. */
static void timer_renew(struct vsp_relay *relay)
{
	uint64_t deadline_ms = relay_deadline_ms(relay);

	if (deadline_ms == NEVER) {
		vsp_timer_remove(relay);
		return;
	}
	relay->deadline_ms = deadline_ms;
	timer_sift(relay->thread, relay);
}

void vsp_timers_serve(struct vsp_thread *thread)
{
	while (thread->timer_count > 0 && thread->timers[0]->deadline_ms <= thread->now_ms) {
		struct vsp_relay *relay = thread->timers[0];
		uint64_t bound_ms = relay_bound_ms(relay);

		if (bound_ms && relay->active_ms + bound_ms <= thread->now_ms) {
			vsp_relay_end(relay, bound_ms == relay->idle_ms ? VSP_IDLE_TIMEOUT
									: VSP_HALF_CLOSE_TIMEOUT);
			continue;
		}
		/* A throttled direction, or a deadline that bytes have put off. */
		if (relay_deadline_ms(relay) <= thread->now_ms)
			vsp_relay_turn(relay);
		if (!relay->ended)
			timer_renew(relay);
	}
}
