/* One direction of a relay: how its bytes move from one side to the other. */

#ifndef VSP_MOVE_H
#define VSP_MOVE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bandwidth.h"
#include "loop.h"
#include "pipe.h"
#include "side.h"

struct vsp_kept;

/* How far a direction is. */
enum vsp_flow {
	VSP_FLOWING,
	VSP_WHOLE,     /* its source's EOF was read, and the receiving socket took every byte */
	VSP_GIVEN_UP,  /* the receiver has closed; no byte is known to be lost, no EOF was read */
	VSP_TRUNCATED, /* bytes were thrown away, or the source failed before its EOF */
};

struct vsp_half {
	_Atomic uint64_t bytes;        /* taken by the receiving socket */
	struct vsp_kept *kept;         /* bytes that it has not taken yet, or NULL */
	struct vsp_pipe *pipe;         /* while its stream is long, or NULL */
	struct vsp_throttle *throttle; /* or NULL */
	unsigned char streak;          /* long reads in a row, up to a limit */
	_Atomic unsigned char flow;    /* enum vsp_flow */
};

/* What a move did, for the relay to act on; a set. */
enum vsp_moved {
	VSP_SENT = 1,      /* the receiving socket took bytes */
	VSP_MORE = 2,      /* the budget is used up: move again in the next turn */
	VSP_ENDED = 4,     /* the direction flows no more */
	VSP_STARVED = 8,   /* truncated for want of memory */
};

/* Return whether the direction flows no more. */
bool vsp_half_is_done(const struct vsp_half *half);

/* Return whether bytes wait in it: for the receiving side, or for bandwidth. */
bool vsp_half_is_pending(const struct vsp_half *half, const struct vsp_side *to);

/*
 * Move one direction until a side would block, its budget is used up, or it is done.  Returns a
 * set of enum vsp_moved; 0 where nothing has changed.
 */
unsigned vsp_half_move(struct vsp_half *half, struct vsp_side *from, struct vsp_side *to,
		       struct vsp_loop *loop);

/* Throw away the bytes under way; a direction that flows ends as `flow`. */
void vsp_half_drop(struct vsp_half *half, struct vsp_pipes *pipes, enum vsp_flow flow);

#endif
