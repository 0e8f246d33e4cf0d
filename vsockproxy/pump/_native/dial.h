/* The dial of a direct relay's target. */

#ifndef VSP_DIAL_H
#define VSP_DIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "loop.h"
#include "relay.h"

enum vsp_dialled {
	VSP_PENDING, /* an event of the target's socket, or the timer, goes on */
	VSP_REACHED, /* the target is connected; only it may be watched */
	VSP_FAILED,  /* `cause` and `error` say why */
};

/* Begin to connect the target of a relay that has entered the loop. */
enum vsp_dialled vsp_dial_begin(struct vsp_relay *relay, struct vsp_loop *loop);

/* Go on after an event of the target's socket; `events` is a set of EPOLLIN... */
enum vsp_dialled vsp_dial_event(struct vsp_relay *relay, struct vsp_loop *loop, uint32_t events);

/* Go on as the relay's timer is due. */
enum vsp_dialled vsp_dial_due(struct vsp_relay *relay, struct vsp_loop *loop);

/* Whether the relay's target is not connected yet. */
bool vsp_dial_is_under_way(const struct vsp_relay *relay);

/*
 * Give the dial up, as its relay ends.  A VMM that owes an OK may not find its socket closed, so
 * `unanswered` takes the descriptor: the caller closes it after the answer.
 */
void vsp_dial_give_up(struct vsp_relay *relay, struct vsp_loop *loop);

#endif
