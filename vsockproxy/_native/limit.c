/*
 * Bandwidth: a token bucket that any number of relays, in any threads, may take from.
 *
 * It counts thousandths of a byte, so that a slow rate loses nothing to rounding however
 * often it is asked.
 */

#include <stdlib.h>

#include "internal.h"

enum {
	MILLI = 1000,
	BURST_MS = 100, /* what may go at once: the bytes of so long */
};

static uint64_t burst_milli(const struct vsp_limit *limit)
{
	uint64_t burst = limit->rate * BURST_MS;

	return burst < MILLI ? MILLI : burst; /* never less than one byte */
}

size_t vsp_limit_take(struct vsp_limit *limit, size_t want, uint64_t now_ms)
{
	uint64_t most;

	pthread_mutex_lock(&limit->mutex);
	/* Threads read the clock each for itself: another may be ahead of this one. */
	if (now_ms > limit->filled_ms) {
		uint64_t passed_ms = now_ms - limit->filled_ms;

		if (passed_ms > MILLI * MILLI)
			passed_ms = MILLI * MILLI; /* the bucket is full anyway */
		limit->level_milli += limit->rate * passed_ms;
		if (limit->level_milli > burst_milli(limit))
			limit->level_milli = burst_milli(limit);
		limit->filled_ms = now_ms;
	}
	most = limit->level_milli / MILLI;
	if (want > most)
		want = most;
	limit->level_milli -= want * MILLI;
	pthread_mutex_unlock(&limit->mutex);
	return want;
}

void vsp_limit_return(struct vsp_limit *limit, size_t unused)
{
	pthread_mutex_lock(&limit->mutex);
	limit->level_milli += unused * MILLI;
	pthread_mutex_unlock(&limit->mutex);
}

struct vsp_limit *vsp_limit_ref(struct vsp_limit *limit)
{
	if (limit)
		atomic_fetch_add(&limit->references, 1);
	return limit;
}

struct vsp_limit *vsp_limit_new(uint64_t rate)
{
	struct vsp_limit *limit = calloc(1, sizeof(*limit));

	if (!limit)
		return NULL;
	pthread_mutex_init(&limit->mutex, NULL);
	limit->rate = rate;
	atomic_init(&limit->references, 1);
	return limit;
}

void vsp_limit_unref(struct vsp_limit *limit)
{
	if (!limit || atomic_fetch_sub(&limit->references, 1) != 1)
		return;
	pthread_mutex_destroy(&limit->mutex);
	free(limit);
}
