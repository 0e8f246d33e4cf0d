/* A relay: two sides, two directions, and how they begin and end. */

#ifndef VSP_RELAY_H
#define VSP_RELAY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "move.h"
#include "loop.h"
#include "pump.h"
#include "side.h"
#include "timer.h"

enum {
	CLIENT,
	TARGET,
};

/* A direction has the number of the side that it reads. */
enum {
	UPSTREAM = CLIENT,
	DOWNSTREAM = TARGET,
};

struct vsp_thread;

/*
 * A relay never changes its thread.  It is freed with its last reference: one is the caller's
 * until the end is reaped, one is the inbox's and one the busy list's while it is in them.
 */
struct vsp_relay {
	struct vsp_side sides[2];
	struct vsp_half halves[2];
	struct vsp_thread *thread;  /* whose inbox takes it */
	uint64_t idle_ms;           /* 0 is no time-out */
	uint64_t half_close_ms;     /* 0 is no time-out */
	uint64_t end_ms;            /* of its life, or NEVER; a duration before it has started */
	uint32_t hold_ms;           /* of silence before a client's FIN is passed on; 0: at once */
	uint32_t linger_ms;         /* without progress until a closing socket is closed */
	uint64_t progress_ms;       /* when a peer's kernel last took bytes; once `closing` */
	_Atomic uint64_t active_ms; /* when a byte last moved, of CLOCK_MONOTONIC */
	struct vsp_timer timer;
	uint32_t tag;
	_Atomic int references;
	unsigned char reason; /* enum vsp_reason; once `closing` */
	unsigned char pause_ms; /* until the send queues are looked at again; once `closing` */
	bool vmm;       /* the target is a VMM's socket */
	bool held;      /* a client's FIN is kept back */
	bool started;
	bool busy;      /* in the loop's list of relays whose budget ran out */
	bool closing;   /* no byte moves any more: see closing.c */
	bool ended;     /* both sockets are closed */
	bool queued;    /* in the inbox; under its mutex */
	unsigned char cancels; /* up to 2; under the inbox's mutex */
	struct vsp_relay *next_inbox;
	struct vsp_relay *next_busy;
	struct vsp_relay *next_ended;
	struct vsp_relay *previous_live;
	struct vsp_relay *next_live;
};

/*
 * Make a relay of two connected sockets, not started, with one reference, the caller's.  NULL
 * without memory; the descriptors are the relay's once it is started.
 */
struct vsp_relay *vsp_relay_new(uint32_t tag, int client, int target,
				const struct vsp_policy *policy);

/* Give back one reference, from any thread. */
void vsp_relay_unref(struct vsp_relay *relay);

/* Add it to the loop's live relays and watch its sockets.  0, or a negative errno. */
int vsp_relay_enter(struct vsp_relay *relay, struct vsp_loop *loop);

/* Take it off the loop's live relays and add it to the ended ones; its sockets are closed. */
void vsp_relay_leave(struct vsp_relay *relay, struct vsp_loop *loop);

#endif
