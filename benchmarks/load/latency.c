/* Times in a histogram: each power of two in 128 steps. */

#include <stdio.h>
#include <stdlib.h>

#include "load.h"

enum {
	STEP_BITS = 7,
	STEPS = 1 << STEP_BITS,
	BUCKETS = 64 * STEPS,
};

struct latency {
	uint64_t number;
	uint64_t buckets[BUCKETS];
};

struct latency *latency_new(void)
{
	struct latency *latency = calloc(1, sizeof(*latency));

	if (latency == NULL)
		fail("out of memory");
	return latency;
}

/* Times below STEPS have a bucket each; above, `shift` low bits are dropped. */
static size_t bucket_of(uint64_t ns)
{
	int shift = 63 - __builtin_clzll(ns | STEPS) - STEP_BITS;

	return (size_t)shift * STEPS + (ns >> shift);
}

static double bucket_us(size_t bucket)
{
	size_t shift = bucket < 2 * STEPS ? 0 : bucket / STEPS - 1;

	return (double)((bucket - shift * STEPS) << shift) / 1000;
}

void latency_add(struct latency *latency, uint64_t ns)
{
	latency->buckets[bucket_of(ns)]++;
	latency->number++;
}

static double percentile_us(const struct latency *latency, double part)
{
	uint64_t below = (uint64_t)(part * (double)latency->number);
	uint64_t seen = 0;

	for (size_t i = 0; i < BUCKETS; i++) {
		seen += latency->buckets[i];
		if (seen > below)
			return bucket_us(i);
	}
	return 0;
}

void latency_print(const struct latency *latency)
{
	printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f", percentile_us(latency, 0.5),
	       percentile_us(latency, 0.99), percentile_us(latency, 0.999));
}
