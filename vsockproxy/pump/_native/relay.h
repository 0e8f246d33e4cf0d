/* A relay: two sides, two directions, and how they begin and end. */

#ifndef VSP_RELAY_H
#define VSP_RELAY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "move.h"
#include "loop.h"
#include "pump.h"
#include "route.h"
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

/* What the dial of a direct relay's target waits for. */
enum vsp_dial {
	VSP_NOTHING,
	VSP_BACKLOG, /* room in a Unix listener's; the timer tries again */
	VSP_ACCEPT,  /* the kernel's answer to connect(2) */
	VSP_ANSWER,  /* a VMM's OK */
};

/* What a direct relay has besides: where it comes from, and its dial. */
struct vsp_direct {
	struct vsp_route *route; /* a reference */
	int64_t opened_us;       /* when it was accepted, of CLOCK_MONOTONIC */
	int64_t connected_us;
	int64_t ended_us;
	uint64_t dial_ms;        /* when the dial is given up */
	uint64_t vmm_port;
	int error;               /* of the dial */
	int unanswered;          /* a VMM's socket that owes its OK, or -1 */
	unsigned char dial;      /* enum vsp_dial */
	unsigned char pause_ms;  /* until a full backlog is tried again */
	unsigned char cause;     /* enum vsp_cause */
	unsigned char line_size;
	char line[32];           /* of VSP_MALFORMED */
	unsigned address_size;
	unsigned char address[]; /* the client's */
};

/*
 * A relay never changes its thread.  It is freed with its last reference: one is the caller's
 * until it is released, one is the inbox's and one the busy list's while it is in them.
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
	struct vsp_direct *direct;  /* NULL where the caller has accepted and dialled */
	uint32_t tag;
	_Atomic int references;
	unsigned char reason; /* enum vsp_reason; once `closing` */
	unsigned char pause_ms; /* until the send queues are looked at again; once `closing` */
	bool held;      /* a client's FIN is kept back */
	bool started;
	bool busy;      /* in the loop's list of relays whose budget ran out */
	bool closing;   /* no byte moves any more: see closing.c */
	bool ended;     /* both sockets are closed */
	bool queued;    /* in the inbox; under its mutex */
	unsigned char cancels; /* up to 2; under the inbox's mutex */
	unsigned char changes; /* enum vsp_what: what is not published yet */
	unsigned char published; /* ... and what is not reaped yet; under the outbox's mutex */
	struct vsp_relay *next_inbox;
	struct vsp_relay *next_busy;
	struct vsp_relay *next_changed;
	struct vsp_relay *next_published;
	struct vsp_relay *previous_live;
	struct vsp_relay *next_live;
};

/*
 * Make a relay of two connected sockets, not started, with one reference, the caller's.  NULL
 * without memory; the descriptors are the relay's once it is started.
 */
struct vsp_relay *vsp_relay_new(uint32_t tag, int client, int target,
				const struct vsp_policy *policy);

/*
 * Make a relay of a client that a direct route has accepted, without a target yet; else like the
 * above.  Takes its own reference to the route.
 */
struct vsp_relay *vsp_relay_new_direct(struct vsp_route *route, const struct vsp_client *client,
				       int domain, struct vsp_loop *loop);

/* Give back one reference, from any thread. */
void vsp_relay_unref(struct vsp_relay *relay);

/* Add it to the loop's live relays.  0, or a negative errno. */
int vsp_relay_enter(struct vsp_relay *relay, struct vsp_loop *loop);

/* Watch its sockets, both connected.  0, or a negative errno. */
int vsp_relay_watch(struct vsp_relay *relay, struct vsp_loop *loop);

/* Have the caller told: `what` is one of enum vsp_what. */
void vsp_relay_tell(struct vsp_relay *relay, struct vsp_loop *loop, enum vsp_what what);

/*
 * Return whether a relay needs no news: it was over before it was reported, its route wants only
 * its numbers, and its end has no word and no descriptor to go with it.
 */
bool vsp_relay_is_countable(const struct vsp_relay *relay);

/* Put it into the loop's list of changed relays, as vsp_relay_tell does. */
void vsp_relay_list(struct vsp_relay *relay, struct vsp_loop *loop);

/* Return whether its opening needs no news yet: it is counted if its end follows in a moment. */
bool vsp_relay_is_new(const struct vsp_relay *relay, const struct vsp_loop *loop);

/* Take it off the loop's live relays and report its end; its sockets are closed. */
void vsp_relay_leave(struct vsp_relay *relay, struct vsp_loop *loop);

#endif
