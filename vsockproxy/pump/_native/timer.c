/* A binary heap of timers, the earliest deadline first; each knows its place in it. */

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "timer.h"

int64_t vsp_clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void timer_place(struct vsp_timers *timers, struct vsp_timer *timer, size_t place)
{
	timers->heap[place] = timer;
	timer->place = (int32_t)place;
}

/* Restore the heap's order around a timer whose deadline or place has changed. */
static void timer_sift(struct vsp_timers *timers, struct vsp_timer *timer)
{
	size_t place = (size_t)timer->place;

	while (place > 0) {
		struct vsp_timer *parent = timers->heap[(place - 1) / 2];

		if (parent->deadline_ms <= timer->deadline_ms)
			break;
		timer_place(timers, parent, place);
		place = (place - 1) / 2;
	}
	for (;;) {
		size_t child = 2 * place + 1;

		if (child >= timers->count)
			break;
		if (child + 1 < timers->count &&
		    timers->heap[child + 1]->deadline_ms < timers->heap[child]->deadline_ms)
			child++;
		if (timers->heap[child]->deadline_ms >= timer->deadline_ms)
			break;
		timer_place(timers, timers->heap[child], place);
		place = child;
	}
	timer_place(timers, timer, place);
}

int vsp_timers_reserve(struct vsp_timers *timers, size_t count)
{
	struct vsp_timer **heap;
	size_t room = timers->room ? timers->room : 64;

	if (count <= timers->room)
		return 0;
	while (room < count)
		room *= 2;
	heap = realloc(timers->heap, room * sizeof(struct vsp_timer *));
	if (!heap)
		return -ENOMEM;
	timers->heap = heap;
	timers->room = room;
	return 0;
}

void vsp_timer_set(struct vsp_timers *timers, struct vsp_timer *timer, uint64_t deadline_ms)
{
	timer->deadline_ms = deadline_ms;
	if (timer->place == NOT_SET)
		timer_place(timers, timer, timers->count++);
	timer_sift(timers, timer);
}

void vsp_timer_remove(struct vsp_timers *timers, struct vsp_timer *timer)
{
	struct vsp_timer *last;

	if (timer->place == NOT_SET)
		return;
	last = timers->heap[--timers->count];
	if (last != timer) {
		timer_place(timers, last, (size_t)timer->place);
		timer_sift(timers, last);
	}
	timer->place = NOT_SET;
}

uint64_t vsp_timers_earliest_ms(const struct vsp_timers *timers)
{
	return timers->count ? timers->heap[0]->deadline_ms : NEVER;
}

struct vsp_timer *vsp_timers_due(const struct vsp_timers *timers, uint64_t now_ms)
{
	return vsp_timers_earliest_ms(timers) <= now_ms ? timers->heap[0] : NULL;
}
