/* Direct routes: a value that all relays of a route share, and its limits. */

#include <stdlib.h>

#include "route.h"

struct vsp_route *vsp_route_new(uint32_t tag, const struct vsp_target *target,
				struct vsp_limit *own, struct vsp_limit *shared)
{
	struct vsp_route *route = calloc(1, sizeof(*route));

	if (!route)
		return NULL;
	route->target = *target;
	if (target->policy.upstream_shared)
		vsp_bandwidth_ref(target->policy.upstream_shared);
	if (target->policy.downstream_shared)
		vsp_bandwidth_ref(target->policy.downstream_shared);
	route->limits[0] = vsp_limit_ref(own);
	route->limits[1] = vsp_limit_ref(shared);
	route->tag = tag;
	atomic_init(&route->references, 1);
	return route;
}

struct vsp_route *vsp_route_ref(struct vsp_route *route)
{
	atomic_fetch_add(&route->references, 1);
	return route;
}

void vsp_route_unref(struct vsp_route *route)
{
	if (atomic_fetch_sub(&route->references, 1) != 1)
		return;
	for (int i = 0; i < LIMITS; i++)
		vsp_limit_unref(route->limits[i]);
	vsp_bandwidth_unref(route->target.policy.upstream_shared);
	vsp_bandwidth_unref(route->target.policy.downstream_shared);
	free(route);
}

bool vsp_route_take(struct vsp_route *route)
{
	for (int i = 0; i < LIMITS; i++) {
		if (vsp_limit_take(route->limits[i]))
			continue;
		while (i-- > 0) {
			vsp_limit_give(route->limits[i]);
			vsp_limit_reported(route->limits[i], 1);
		}
		return false;
	}
	return true;
}

bool vsp_route_is_near(const struct vsp_route *route)
{
	for (int i = 0; i < LIMITS; i++)
		if (vsp_limit_is_near(route->limits[i]))
			return true;
	return false;
}

void vsp_route_give(struct vsp_route *route)
{
	for (int i = 0; i < LIMITS; i++)
		vsp_limit_give(route->limits[i]);
}

void vsp_route_reported(struct vsp_route *route, int64_t connections)
{
	for (int i = 0; i < LIMITS; i++)
		vsp_limit_reported(route->limits[i], connections);
}
