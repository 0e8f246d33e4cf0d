/* A binary heap of the relays that something bounds, the earliest deadline first. */

#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static void timer_place(struct vsp_thread *thread, struct vsp_relay *relay, size_t place)
{
	thread->timers[place] = relay;
	relay->timer = (int32_t)place;
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

void vsp_timer_set(struct vsp_relay *relay, uint64_t deadline_ms)
{
	struct vsp_thread *thread = relay->thread;

	relay->deadline_ms = deadline_ms;
	if (relay->timer == NO_TIMER)
		timer_place(thread, relay, thread->timer_count++);
	timer_sift(thread, relay);
}

struct vsp_relay *vsp_timer_due(const struct vsp_thread *thread)
{
	if (thread->timer_count == 0 || thread->timers[0]->deadline_ms > thread->now_ms)
		return NULL;
	return thread->timers[0];
}
