/*
 * What the files of the native pump share.  See pump.h for what it does for its caller.
 *
 * Each thread owns an epoll set, a scratch buffer and the relays that were given to it; a
 * relay never changes its thread.  Sockets are watched edge-triggered and registered once:
 * what an edge said is remembered in `struct vsp_side` and forgotten when the kernel answers
 * EAGAIN.  Bytes go through the thread's scratch buffer; what the receiving socket did not
 * take is kept in a buffer of its own until it does, so an idle relay owns none.
 *
 * Two lists cross threads, each under its mutex: a thread's inbox (relays to start or to
 * cancel) and the pump's ended relays.  A relay is freed by whoever drops the last of its
 * references: one is the caller's until the end is reaped, one is the inbox's and one the
 * busy list's while it waits there.
 */

#ifndef VSP_INTERNAL_H
#define VSP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pump.h"

#define NEVER UINT64_MAX

enum {
	CLIENT,
	TARGET,
};

/* A direction has the number of the side that it reads. */
enum {
	UPSTREAM = CLIENT,
	DOWNSTREAM = TARGET,
};

enum {
	EVENTS = 256,              /* taken from one epoll_wait */
	SCRATCH = 256 * 1024,      /* moved by one recv and send */
	BUDGET = 4 * SCRATCH,      /* moved one way before the others get their turn */
	NO_TIMER = -1,
	LIMITS = 2,                /* of one direction: the connection's own, and a shared one */
	THROTTLED_MS = 20,         /* how often a throttled direction looks for bandwidth */
};

/* One socket of a relay, and what its edges have said. */
struct vsp_side {
	struct vsp_relay *relay;
	int fd;
	int error;      /* the errno that ended it, or 0 */
	bool readable;  /* recv may have something */
	bool writable;  /* send may take something */
	bool fin;       /* the peer's EOF is on its way, or read */
	bool gone;      /* the peer has closed: it takes nothing any more */
};

/* One direction of a relay. */
struct vsp_half {
	_Atomic uint64_t bytes; /* taken by the receiving socket */
	char *kept;             /* not yet taken, or NULL */
	size_t kept_start;
	size_t kept_end;
	struct vsp_limit *limits[LIMITS];
	uint64_t due_ms; /* no bandwidth is left until then; 0 where there is */
	_Atomic bool done; /* nothing more will go this way */
	bool dropped;      /* ... and what was left was thrown away */
};

struct vsp_limit {
	pthread_mutex_t mutex;
	uint64_t rate; /* bytes a second */
	uint64_t level_milli;
	uint64_t filled_ms;
	_Atomic int references;
};

struct vsp_relay {
	struct vsp_side sides[2];
	struct vsp_half halves[2];
	struct vsp_thread *thread;
	uint64_t tag;
	uint64_t idle_ms;
	uint64_t half_close_ms;
	uint64_t end_ms;     /* of its life, or NEVER */
	_Atomic uint64_t active_ms; /* when a byte last moved */
	ptrdiff_t timer;     /* place in the thread's heap, or NO_TIMER */
	uint64_t deadline_ms;
	_Atomic int references;
	int reason;
	int error;
	bool hold;      /* keep a client's EOF back while the target owes an answer */
	bool answered;  /* the last byte went downstream, or there was none yet */
	bool started;
	bool busy;      /* in the thread's list of relays whose budget ran out */
	bool ended;
	bool queued;    /* in the inbox; under its mutex */
	bool cancelled; /* under the inbox's mutex */
	struct vsp_relay *next_inbox;
	struct vsp_relay *next_busy;
	struct vsp_relay *next_ended;
	struct vsp_relay *previous_live;
	struct vsp_relay *next_live;
};

struct vsp_thread {
	struct vsp_pump *pump;
	pthread_t id;
	int epoll;
	int wake; /* eventfd: the inbox has something */
	char *scratch;
	uint64_t now_ms;
	_Atomic size_t load;         /* relays given to this thread and not ended */
	_Atomic unsigned asked;      /* vsp_pump_ask's calls */
	_Atomic unsigned answered;   /* ... as seen by the thread */
	struct vsp_relay *live;
	struct vsp_relay *busy;
	struct vsp_relay *ended;     /* in this turn; published at its end */
	struct vsp_relay **timers;   /* a binary heap, the earliest deadline first */
	size_t timer_count;
	size_t timer_room;
	size_t live_count;
	pthread_mutex_t mutex;       /* the inbox: */
	struct vsp_relay *inbox;
	struct vsp_relay **inbox_tail;
	bool stopping;
};

struct vsp_pump {
	int done; /* eventfd: `ended` has something */
	pthread_mutex_t mutex;
	struct vsp_relay *ended;
	unsigned thread_count;
	struct vsp_thread threads[];
};

/* relay.c: what happens to one relay, always in its thread */

/* Begin to relay; may end at once. */
void vsp_relay_start(struct vsp_relay *relay);
/* Take in what an edge of one of its sockets says, and move what can move. */
void vsp_side_event(struct vsp_side *side, uint32_t events);
/* Move both directions as far as they go, then see what that means for the relay. */
void vsp_relay_turn(struct vsp_relay *relay);
/* Its time has come: end it, go on with it, or see that it was put off. */
void vsp_relay_due(struct vsp_relay *relay);
/* Close both sockets; the thread tells the caller at the end of its turn.  Once is enough. */
void vsp_relay_end(struct vsp_relay *relay, enum vsp_reason reason);
/* Give back one reference, from any thread. */
void vsp_relay_unref(struct vsp_relay *relay);

/* timer.c: a relay is in its thread's heap only while something bounds it */

/* Make room for one relay more.  0 or -ENOMEM. */
int vsp_timer_reserve(struct vsp_thread *thread);
/* Have the relay come up at a time, instead of at the one before. */
void vsp_timer_set(struct vsp_relay *relay, uint64_t deadline_ms);
void vsp_timer_remove(struct vsp_relay *relay);
/* A relay whose time has come, or NULL. */
struct vsp_relay *vsp_timer_due(const struct vsp_thread *thread);

/* limit.c */

/* How much of `want` may go now, possibly 0; and give back what did not. */
size_t vsp_limit_take(struct vsp_limit *limit, size_t want, uint64_t now_ms);
void vsp_limit_return(struct vsp_limit *limit, size_t unused);
/* Another reference to the limit; NULL gives NULL. */
struct vsp_limit *vsp_limit_ref(struct vsp_limit *limit);

/* thread.c: what wakes a thread, and what it does then */

/* 0, or a negative errno and nothing is left behind. */
int vsp_thread_start(struct vsp_pump *pump, struct vsp_thread *thread);
/* End the thread's relays and the thread. */
void vsp_thread_stop(struct vsp_thread *thread);
/* Have the relay's thread start it, or cancel it; from the caller's thread. */
void vsp_inbox_put(struct vsp_relay *relay, bool cancel);
/* Wake the thread from its sleep; from the caller's thread. */
void vsp_thread_wake(struct vsp_thread *thread);

#endif
