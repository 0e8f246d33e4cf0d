/* A direct route: how its clients are connected and treated, and how many it may have. */

#ifndef VSP_ROUTE_H
#define VSP_ROUTE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bandwidth.h"
#include "limit.h"
#include "pump.h"

enum {
	LIMITS = 2, /* the route's own, and that of all direct routes */
};

/* It does not change: a reload makes another one, and the relays of this one keep it. */
struct vsp_route {
	struct vsp_target target;
	struct vsp_limit *limits[LIMITS]; /* a reference to each */
	uint32_t tag;
	_Atomic int references;
	struct vsp_tally tally;        /* under the outbox's mutex, as is: */
	struct vsp_route *next_tallied; /* with a reference to each */
};

/* Make a route with one reference, the caller's; NULL without memory. */
struct vsp_route *vsp_route_new(uint32_t tag, const struct vsp_target *target,
				struct vsp_limit *own, struct vsp_limit *shared);
struct vsp_route *vsp_route_ref(struct vsp_route *route);
void vsp_route_unref(struct vsp_route *route);

/* Take one connection's place in each limit; whether there was one in all. */
bool vsp_route_take(struct vsp_route *route);

/* Whether a limit is near, of which clients may wait for places. */
bool vsp_route_is_near(const struct vsp_route *route);

/* Give the places back; and note that the caller knows of the ends of connections. */
void vsp_route_give(struct vsp_route *route);
void vsp_route_reported(struct vsp_route *route, int64_t connections);

#endif
