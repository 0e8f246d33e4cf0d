/*
 * What the files of the native pump share.  See pump.h for what it does for its caller.
 *
 * Each thread owns an epoll set, a scratch buffer and the relays that were given to it; a
 * relay never changes its thread.  Sockets are watched edge-triggered and registered once:
 * what an edge said is remembered in `struct vsp_side` and forgotten when the kernel answers
 * EAGAIN.  Bytes go through the thread's scratch buffer, or a pipe where a stream is long; what
 * the receiving socket did not take is kept until it does, so an idle relay owns neither.
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
	LONG_READ = 32 * 1024,     /* a read of so much is of a stream, ... */
	STREAK = 4,                /* ... and after so many in a row it is spliced */
	PIPES = 16,                /* of all threads together, or fewer: ... */
	TABLE_PART = 16,           /* ... one in so many descriptors that there may be */
	SPARE_MS = 1000,           /* until pipes that nobody uses are closed */
};

/* One socket of a relay, and what its edges have said. */
struct vsp_side {
	struct vsp_relay *relay;
	_Atomic int fd; /* -1 before it is closed */
	short error;    /* the errno that ended it, or 0 */
	unsigned char domain; /* AF_INET... */
	bool sendable;  /* EPOLLOUT is asked for: see side_watch */
	bool urgent;    /* it has, or had, urgent data, which ends reads early */
	bool readable;  /* recv may have something */
	bool writable;  /* send may take something */
	bool fin;       /* the peer's EOF is on its way, or read */
	bool gone;      /* the peer has closed: it takes nothing any more */
};

/* Bytes that the receiving socket has not taken yet. */
struct vsp_kept {
	size_t start;
	size_t end;
	char data[];
};

/* A pipe in use, or in its thread's list. */
struct vsp_pipe {
	int in;
	int out;
	size_t level; /* bytes that are in it */
	struct vsp_pipe *next;
};

/* What holds one direction back; where nothing does, there is none. */
struct vsp_throttle {
	struct vsp_limit *limits[LIMITS];
	uint64_t due_ms; /* no bandwidth is left until then; 0 where there is */
};

/* One direction of a relay. */
struct vsp_half {
	_Atomic uint64_t bytes; /* taken by the receiving socket */
	struct vsp_kept *kept;         /* or NULL */
	struct vsp_pipe *pipe;         /* while its stream is long, or NULL */
	struct vsp_throttle *throttle; /* or NULL */
	unsigned char streak;          /* long reads in a row, up to STREAK */
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
	uint64_t idle_ms;
	uint64_t half_close_ms;
	uint64_t end_ms;     /* of its life, or NEVER */
	_Atomic uint64_t active_ms; /* when a byte last moved */
	uint64_t deadline_ms;
	uint32_t tag;
	int32_t timer;       /* place in the thread's heap, or NO_TIMER */
	_Atomic int references;
	short error;
	unsigned char reason;
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
	struct vsp_pipe *pipes;      /* those that nobody uses */
	uint64_t woken_ms;           /* when an event last came */
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
	_Atomic int pipes_left;
	pthread_mutex_t mutex;
	struct vsp_relay *ended;
	unsigned thread_count;
	struct vsp_thread threads[];
};

/* half.c: how one direction of a relay moves, always in its thread */

/* Move one direction until a side would block, its budget is used, or it is done. */
void vsp_half_move(struct vsp_relay *relay, int direction);
/* The receiving side is gone: let a send find that out, or end a direction with no news. */
void vsp_half_give_up(struct vsp_relay *relay, int direction);
/* Throw away what is under way; nothing more will go. */
void vsp_half_drop(struct vsp_relay *relay, int direction);
/*
 * Whether the side's stream is all there although it ends with an error.  A FIN that came
 * before a reset says so.  A Unix peer's close loses nothing that it wrote: ECONNRESET only
 * says that it left something unread, which does not make a client's upload incomplete.
 */
bool vsp_side_is_whole(const struct vsp_relay *relay, int which);

/* pipe.c */

/* An empty pipe, or NULL when there are enough of them. */
struct vsp_pipe *vsp_pipe_take(struct vsp_thread *thread);
/* Give a pipe back, empty or not. */
void vsp_pipe_give(struct vsp_thread *thread, struct vsp_pipe *pipe);
/* How many a pump may have in all. */
int vsp_pipes_most(void);
/* Close those that nobody uses. */
void vsp_pipes_free(struct vsp_thread *thread);

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
/*
 * Have the thread told of edges.  That a side takes bytes again is asked for only while it
 * does not: a Unix socket says so whenever its peer reads, which nobody wants to hear.
 */
void vsp_side_watch(struct vsp_thread *thread, struct vsp_side *side);
/* The bounds on silence count from now on. */
void vsp_relay_touch(struct vsp_relay *relay);
/* Have the relay go on in the thread's next turn, after others had theirs. */
void vsp_relay_be_busy(struct vsp_relay *relay);
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
/*
 * What holds one direction back: a limit of its own of `rate` bytes a second, and one that it
 * shares; 0 and NULL are none.  0 and *ret, NULL where nothing does; or -ENOMEM.
 */
int vsp_throttle_new(uint64_t rate, struct vsp_limit *shared, struct vsp_throttle **ret);
/* NULL is fine. */
void vsp_throttle_free(struct vsp_throttle *throttle);
/* When there is bandwidth again; 0 when there is now. */
uint64_t vsp_half_due(const struct vsp_half *half);

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
