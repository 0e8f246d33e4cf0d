/* One direction of a relay: how its bytes move from one side to the other. */

#ifndef VSP_HALF_H
#define VSP_HALF_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bandwidth.h"
#include "loop.h"
#include "pipe.h"
#include "side.h"

struct vsp_kept;

struct vsp_half {
	_Atomic uint64_t bytes;        /* taken by the receiving socket */
	struct vsp_kept *kept;         /* bytes that it has not taken yet, or NULL */
	struct vsp_pipe *pipe;         /* while its stream is long, or NULL */
	struct vsp_throttle *throttle; /* or NULL */
	unsigned char streak;          /* long reads in a row, up to a limit */
	_Atomic bool done;             /* nothing more goes this way */
	bool dropped;                  /* the stream is truncated: some of it was thrown away */
};

/* What a move did, for the relay to act on; a set. */
enum vsp_moved {
	VSP_SENT = 1,      /* the receiving socket took bytes */
	VSP_MORE = 2,      /* the budget is used up: move again in the next turn */
	VSP_ENDED = 4,     /* the direction is done: at its EOF, or `dropped` without a receiver */
	VSP_NO_MEMORY = 8, /* bytes were thrown away for want of memory; the direction is done */
};

/*
 * Move one direction until a side would block, its budget is used up, or it is done.  Returns a
 * set of enum vsp_moved; 0 where nothing has changed.
 */
unsigned vsp_half_move(struct vsp_half *half, struct vsp_side *from, struct vsp_side *to,
		       struct vsp_loop *loop);

/* Throw away the bytes under way and end the direction. */
void vsp_half_drop(struct vsp_half *half, struct vsp_pipes *pipes);

#endif
