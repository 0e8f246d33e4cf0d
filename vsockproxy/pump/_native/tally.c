/* A route's tally: how many connections have ended in which way, and the sums of their numbers. */

#include <string.h>

#include "route.h"
#include "tally.h"

static void histogram_add(struct vsp_histogram *histogram, const int64_t *bounds, int64_t value_us)
{
	int bucket = 0;

	while (bucket < VSP_BUCKETS - 1 && bounds[bucket] < value_us)
		bucket++;
	histogram->counts[bucket]++;
	histogram->sum_us += value_us;
}

bool vsp_tally_add(struct vsp_relay *relay)
{
	const struct vsp_direct *direct = relay->direct;
	const struct vsp_target *target = &direct->route->target;
	struct vsp_tally *tally = &direct->route->tally;

	if (direct->connected_us) {
		histogram_add(&tally->dials, target->dial_bounds_us,
			      direct->connected_us - direct->opened_us);
		if (tally->connected_us < direct->connected_us)
			tally->connected_us = direct->connected_us;
	}
	histogram_add(&tally->lives, target->life_bounds_us, direct->ended_us - direct->opened_us);
	tally->upstream_bytes += vsp_relay_upstream(relay);
	tally->downstream_bytes += vsp_relay_downstream(relay);
	tally->reasons[relay->reason]++;
	return tally->ended++ == 0;
}

void vsp_tally_take(struct vsp_route *route, struct vsp_tally *ret_tally)
{
	*ret_tally = route->tally;
	ret_tally->route = route->tag;
	memset(&route->tally, 0, sizeof(route->tally));
}
