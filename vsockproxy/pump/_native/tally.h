/* What a route counts of its direct connections that were over before the caller knew of them. */

#ifndef VSP_TALLY_H
#define VSP_TALLY_H

#include <stdbool.h>

#include "pump.h"
#include "relay.h"

/*
 * Whether a relay, which has ended, needs no news: its route wants only its numbers, and its end
 * has no word and no descriptor to go with it.
 */
bool vsp_tally_takes(const struct vsp_relay *relay);

/* Count the relay in its route's tally.  Whether it is the first one there. */
bool vsp_tally_add(struct vsp_relay *relay);

/* Move a route's tally to `ret_tally`, and begin another one. */
void vsp_tally_take(struct vsp_route *route, struct vsp_tally *ret_tally);

#endif
