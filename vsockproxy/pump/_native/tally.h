/* What a route counts of its direct connections that were over before the caller knew of them. */

#ifndef VSP_TALLY_H
#define VSP_TALLY_H

#include <stdbool.h>

#include "pump.h"
#include "relay.h"

/* Count the relay in its route's tally.  Whether it is the first one there. */
bool vsp_tally_add(struct vsp_relay *relay);

/* Move a route's tally to `ret_tally`, and begin another one. */
void vsp_tally_take(struct vsp_route *route, struct vsp_tally *ret_tally);

#endif
