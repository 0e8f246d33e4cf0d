/* What the relays of one thread share; only that thread touches it. */

#ifndef VSP_LOOP_H
#define VSP_LOOP_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "peer.h"
#include "pipe.h"
#include "timer.h"

enum {
	SCRATCH = PIPE_SIZE,  /* bytes moved by one recv and send */
	BUDGET = 4 * SCRATCH, /* bytes moved one way before other relays get their turn */
};

enum {
	TELL_MS = 4,  /* between two publications of what direct relays have to tell */
	COUNT_MS = 50, /* ... where they only have numbers, and no client waits for their places */
	NEW_MS = 100, /* from a direct relay's accept until it is reported, unless it ends before */
};

struct vsp_relay;
struct vsp_thread;

struct vsp_loop {
	struct vsp_thread *thread; /* its own */
	int epoll;
	uint64_t now_ms;    /* of CLOCK_MONOTONIC, read once a turn */
	char *scratch;      /* SCRATCH bytes, which hold nothing between two calls */
	struct vsp_pipes pipes;
	struct vsp_peers peers;
	struct vsp_timers timers;
	struct vsp_relay *live;
	size_t live_count;
	struct vsp_relay *busy;  /* their budget ran out: they go on in the next turn */
	struct vsp_relay *changed; /* they have something to tell, the first one first */
	struct vsp_relay **changed_tail;
	uint64_t tell_ms; /* when that is published, or NEVER */
	uint64_t told_ms; /* when that was done last */
	_Atomic size_t load; /* relays that were given to it, or accepted, and have not ended */
};

#endif
