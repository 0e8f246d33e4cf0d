/* The end of a relay: how its two sockets are closed. */

#ifndef VSP_CLOSING_H
#define VSP_CLOSING_H

#include "relay.h"

/*
 * Stop moving bytes and close both sockets, each by vsp_close_of; at once, or over further turns.
 * The relay leaves its thread with the second one.  A relay that closes already goes on.
 */
void vsp_closing_begin(struct vsp_relay *relay, struct vsp_loop *loop, enum vsp_reason reason);

/* Go on closing after an edge of a side was noted. */
void vsp_closing_move(struct vsp_relay *relay, struct vsp_loop *loop);

/* Go on closing as the relay's timer is due. */
void vsp_closing_due(struct vsp_relay *relay, struct vsp_loop *loop);

/* Close what is left without waiting, by RST where a stream may be truncated. */
void vsp_closing_hurry(struct vsp_relay *relay, struct vsp_loop *loop);

#endif
