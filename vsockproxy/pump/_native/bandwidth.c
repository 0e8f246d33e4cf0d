/*
 * Bandwidth: a token bucket from which any number of relays, in any threads, may take.
 *
 * A bucket counts thousandths of a byte, so that a slow rate loses nothing to rounding, however
 * often relays take from it.
 *
 * Time is cut into periods, the same for all, so that every direction that waits wakes at the same
 * moment: whichever asks first then takes no more than the others.  What some leave of their shares
 * is in the next period's.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "bandwidth.h"

/* Bytes a second that no machine moves: bounds the products below. */
#define RATE_MAX UINT64_C(1000000000000)

enum {
	MILLI = 1000,
	BURST_MS = 100, /* a full bucket holds the bytes of this time */
	LEAST = 2048,   /* bytes of a share for which it is worth to read and send */
	PERIODS = 3,    /* for which a bucket waits until it has them for everyone */
};

struct vsp_bandwidth {
	pthread_mutex_t mutex;
	uint64_t rate; /* bytes a second */
	uint64_t level_milli; /* thousandths of a byte */
	uint64_t filled_ms;
	uint64_t period;        /* the present one: milliseconds divided by PERIOD_MS */
	uint64_t share;         /* bytes that a direction may take in it */
	uint64_t refused;       /* directions that wanted more in it */
	_Atomic int references;
};

/* ---- one bucket ---- */

static uint64_t burst_milli(const struct vsp_bandwidth *bucket)
{
	uint64_t burst = bucket->rate * BURST_MS;

	return burst < MILLI ? MILLI : burst; /* never less than one byte */
}

static void bucket_fill(struct vsp_bandwidth *bucket, uint64_t now_ms)
{
	uint64_t passed_ms;

	/* Each thread reads the clock on its own: another one may be ahead of this one. */
	if (now_ms <= bucket->filled_ms)
		return;
	passed_ms = now_ms - bucket->filled_ms;
	if (passed_ms > MILLI * MILLI)
		passed_ms = MILLI * MILLI; /* the bucket is full by then: avoids an overflow */
	bucket->level_milli += bucket->rate * passed_ms;
	if (bucket->level_milli > burst_milli(bucket))
		bucket->level_milli = burst_milli(bucket);
	bucket->filled_ms = now_ms;
}

/* Divide what there is, at the first call of a period; of several where the shares are small. */
static void bucket_divide(struct vsp_bandwidth *bucket, uint64_t period)
{
	uint64_t share;

	if (period <= bucket->period)
		return;
	share = bucket->level_milli / MILLI / (bucket->refused ? bucket->refused : 1);
	if (share < LEAST && period < bucket->period + PERIODS)
		return;
	bucket->share = share;
	if (bucket->share == 0)
		bucket->share = 1; /* else a rate below a byte for each would move nothing */
	bucket->refused = 0;
	bucket->period = period;
}

static uint64_t smaller(uint64_t one, uint64_t other)
{
	return one < other ? one : other;
}

static size_t share_take(struct vsp_share *share, size_t most, uint64_t now_ms)
{
	struct vsp_bandwidth *bucket = share->bucket;
	uint64_t size;

	pthread_mutex_lock(&bucket->mutex);
	bucket_fill(bucket, now_ms);
	bucket_divide(bucket, now_ms / PERIOD_MS);
	if (share->period != bucket->period) {
		share->period = bucket->period;
		share->taken = 0;
		share->refused = false;
	}
	size = smaller(bucket->level_milli / MILLI, bucket->share - share->taken);
	size = smaller(size, most);
	bucket->level_milli -= size * MILLI;
	share->taken += size;
	if (size == 0 && !share->refused) {
		share->refused = true;
		bucket->refused++;
	}
	pthread_mutex_unlock(&bucket->mutex);
	return size;
}

/* Give back bytes of the last take: they are of the direction's period, present or not. */
static void share_return(struct vsp_share *share, size_t unused)
{
	pthread_mutex_lock(&share->bucket->mutex);
	share->bucket->level_milli += unused * MILLI;
	share->taken -= unused;
	pthread_mutex_unlock(&share->bucket->mutex);
}

struct vsp_bandwidth *vsp_bandwidth_new(uint64_t rate)
{
	struct vsp_bandwidth *bucket = calloc(1, sizeof(*bucket));

	if (!bucket)
		return NULL;
	pthread_mutex_init(&bucket->mutex, NULL);
	bucket->rate = rate < RATE_MAX ? rate : RATE_MAX;
	atomic_init(&bucket->references, 1);
	return bucket;
}

void vsp_bandwidth_ref(struct vsp_bandwidth *bucket)
{
	atomic_fetch_add(&bucket->references, 1);
}

void vsp_bandwidth_unref(struct vsp_bandwidth *bucket)
{
	if (!bucket || atomic_fetch_sub(&bucket->references, 1) != 1)
		return;
	pthread_mutex_destroy(&bucket->mutex);
	free(bucket);
}

/* ---- the shares of one direction ---- */

int vsp_throttle_new(uint64_t rate, struct vsp_bandwidth *shared, struct vsp_throttle **ret)
{
	struct vsp_throttle *throttle;

	*ret = NULL;
	if (rate == 0 && !shared)
		return 0;
	throttle = calloc(1, sizeof(*throttle));
	if (!throttle)
		return -ENOMEM;
	if (rate) {
		throttle->shares[0].bucket = vsp_bandwidth_new(rate);
		if (!throttle->shares[0].bucket) {
			free(throttle);
			return -ENOMEM;
		}
	}
	if (shared)
		vsp_bandwidth_ref(shared);
	throttle->shares[1].bucket = shared;
	*ret = throttle;
	return 0;
}

void vsp_throttle_free(struct vsp_throttle *throttle)
{
	if (!throttle)
		return;
	for (int i = 0; i < BUCKETS; i++)
		vsp_bandwidth_unref(throttle->shares[i].bucket);
	free(throttle);
}

size_t vsp_throttle_take(struct vsp_throttle *throttle, size_t most, uint64_t now_ms)
{
	size_t size = most;

	if (!throttle)
		return most;
	if (throttle->due_ms)
		return 0;
	for (int i = 0; i < BUCKETS && size > 0; i++) {
		size_t less;

		if (!throttle->shares[i].bucket)
			continue;
		less = share_take(&throttle->shares[i], size, now_ms);
		/* The buckets before this one had more than it has. */
		for (int before = 0; before < i; before++)
			if (throttle->shares[before].bucket)
				share_return(&throttle->shares[before], size - less);
		size = less;
	}
	if (size == 0)
		throttle->due_ms = (now_ms / PERIOD_MS + 1) * PERIOD_MS;
	return size;
}

void vsp_throttle_return(struct vsp_throttle *throttle, size_t unused)
{
	if (!throttle || unused == 0)
		return;
	for (int i = 0; i < BUCKETS; i++)
		if (throttle->shares[i].bucket)
			share_return(&throttle->shares[i], unused);
}

void vsp_throttle_wake(struct vsp_throttle *throttle, uint64_t now_ms)
{
	if (throttle && throttle->due_ms <= now_ms)
		throttle->due_ms = 0;
}

uint64_t vsp_throttle_due(const struct vsp_throttle *throttle)
{
	return throttle ? throttle->due_ms : 0;
}
