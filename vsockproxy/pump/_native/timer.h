/* Timers: a binary heap, the earliest deadline first. */

#ifndef VSP_TIMER_H
#define VSP_TIMER_H

#include <stddef.h>
#include <stdint.h>

#define NEVER UINT64_MAX

enum {
	NOT_SET = -1,
};

/* Return the time in microseconds of CLOCK_MONOTONIC. */
int64_t vsp_clock_us(void);

/* A deadline; a member of the object that it wakes. */
struct vsp_timer {
	uint64_t deadline_ms; /* of CLOCK_MONOTONIC */
	int32_t place;        /* in the heap, or NOT_SET */
};

/* The timers of one thread that are set; it owns none of them. */
struct vsp_timers {
	struct vsp_timer **heap;
	size_t count;
	size_t room;
};

/* Make room for `count` timers in all, so that setting one cannot fail.  0 or -ENOMEM. */
int vsp_timers_reserve(struct vsp_timers *timers, size_t count);

/* Set a timer, or move its deadline.  There must be room for it. */
void vsp_timer_set(struct vsp_timers *timers, struct vsp_timer *timer, uint64_t deadline_ms);

/* Remove a timer; one that is not set stays so. */
void vsp_timer_remove(struct vsp_timers *timers, struct vsp_timer *timer);

/* Return the earliest deadline, or NEVER. */
uint64_t vsp_timers_earliest_ms(const struct vsp_timers *timers);

/* Return the earliest timer where its deadline has come, else NULL.  It stays set. */
struct vsp_timer *vsp_timers_due(const struct vsp_timers *timers, uint64_t now_ms);

#endif
