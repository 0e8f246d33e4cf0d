/* What the relays of one thread share; only that thread touches it. */

#ifndef VSP_LOOP_H
#define VSP_LOOP_H

#include <stddef.h>
#include <stdint.h>

#include "pipe.h"
#include "timer.h"

enum {
	SCRATCH = PIPE_SIZE,  /* bytes moved by one recv and send */
	BUDGET = 4 * SCRATCH, /* bytes moved one way before other relays get their turn */
};

struct vsp_relay;

struct vsp_loop {
	int epoll;
	uint64_t now_ms;    /* of CLOCK_MONOTONIC, read once a turn */
	char *scratch;      /* SCRATCH bytes, which hold nothing between two calls */
	struct vsp_pipes pipes;
	struct vsp_timers timers;
	struct vsp_relay *live;
	size_t live_count;
	struct vsp_relay *busy;  /* their budget ran out: they go on in the next turn */
	struct vsp_relay *ended; /* in this turn; published at its end */
};

#endif
