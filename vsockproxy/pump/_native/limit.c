/*
 * Bandwidth: a token bucket that any number of relays, in any threads, may take from.
 *
 * It counts thousandths of a byte, so that a slow rate loses nothing to rounding however
 * often it is asked.
 */

#include <errno.h>
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

int vsp_throttle_new(uint64_t rate, struct vsp_limit *shared, struct vsp_throttle **ret)
{
	struct vsp_throttle *throttle;

	*ret = NULL;
	if (rate == 0 && !shared)
		return 0;
	throttle = calloc(1, sizeof(*throttle));
	if (!throttle)
		return -ENOMEM;
	if (rate) {
		throttle->limits[0] = vsp_limit_new(rate);
		if (!throttle->limits[0]) {
			free(throttle);
			return -ENOMEM;
		}
	}
	if (shared)
		atomic_fetch_add(&shared->references, 1);
	throttle->limits[1] = shared;
	*ret = throttle;
	return 0;
}

void vsp_throttle_free(struct vsp_throttle *throttle)
{
	if (!throttle)
		return;
	for (int i = 0; i < LIMITS; i++)
		vsp_limit_unref(throttle->limits[i]);
	free(throttle);
}

uint64_t vsp_half_due(const struct vsp_half *half)
{
	return half->throttle ? half->throttle->due_ms : 0;
}
