/* A relay's turn in its thread: an edge, a deadline or a used-up budget makes it move. */

#ifndef VSP_TURN_H
#define VSP_TURN_H

#include <stdint.h>

#include "loop.h"
#include "relay.h"

/* Begin to relay; may end the relay. */
void vsp_turn_start(struct vsp_relay *relay, struct vsp_loop *loop);

/* Begin to serve a client that a direct route has accepted: dial, then relay; may end the relay. */
void vsp_turn_accept(struct vsp_relay *relay, struct vsp_loop *loop);

/* Take in what an edge of one of its sockets says, and move. */
void vsp_turn_event(struct vsp_side *side, struct vsp_loop *loop, uint32_t events);

/* Move both directions as far as they go; end the relay where that ends it. */
void vsp_turn_move(struct vsp_relay *relay, struct vsp_loop *loop);

/* Serve the timers that are due: end their relays, or move them, or set the timers again. */
void vsp_turn_timers(struct vsp_loop *loop);

#endif
