/* A binary heap of the relays that something bounds, the earliest deadline first. */

#include <errno.h>
#include <stdlib.h>

#include "internal.h"

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

/*
 * See that the thread wakes no later than the relay's bound.  A deadline that is too early
 * stays: vsp_timers_serve looks again, which costs less than a move in the heap for every byte.
 * Room was made in vsp_relay_start.
 */
void vsp_timer_update(struct vsp_relay *relay)
{
	struct vsp_thread *thread = relay->thread;
	uint64_t bound_ms = relay_bound_ms(relay);
	uint64_t deadline_ms = relay->active_ms + bound_ms;

	if (bound_ms == 0 || (relay->timer != NO_TIMER && relay->deadline_ms <= deadline_ms))
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

void vsp_timers_serve(struct vsp_thread *thread)
{
	while (thread->timer_count > 0 && thread->timers[0]->deadline_ms <= thread->now_ms) {
		struct vsp_relay *relay = thread->timers[0];
		uint64_t bound_ms = relay_bound_ms(relay);

		if (relay->active_ms + bound_ms > thread->now_ms) {
			relay->deadline_ms = relay->active_ms + bound_ms;
			timer_sift(thread, relay);
		} else if (bound_ms == relay->idle_ms) {
			vsp_relay_end(relay, VSP_IDLE_TIMEOUT);
		} else {
			vsp_relay_end(relay, VSP_HALF_CLOSE_TIMEOUT);
		}
	}
}
