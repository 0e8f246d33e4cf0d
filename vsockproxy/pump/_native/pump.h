/*
 * The native pump: threads that move bytes between pairs of connected sockets.
 *
 * This header has two readers: the C compiler, and cffi, which takes the declarations without the
 * preprocessor lines.  So there are no macros in it, and only what a caller needs.
 *
 * A relay is one pair: `client` is the side that was accepted, `target` the side that was
 * dialled; upstream is client to target.  Everything but the moving happens in the caller's
 * thread; only one thread at a time may call into one pump.
 *
 * Calls that return int return 0 or a count, or a negative errno.
 */

#ifndef VSP_PUMP_H
#define VSP_PUMP_H

#include <stdbool.h>
#include <stdint.h>

struct vsp_pump;
struct vsp_relay;
struct vsp_bandwidth;
struct vsp_limit;
struct vsp_server;

/* How a relay ended. */
enum vsp_reason {
	VSP_FINISHED,           /* nothing was lost: both ended, or one closed with nothing under way */
	VSP_HALF_CLOSE_TIMEOUT, /* no byte for half_close_ms after one side's EOF */
	VSP_IDLE_TIMEOUT,       /* no byte either way for idle_ms */
	VSP_MAX_LIFETIME,       /* it was open for lifetime_ms */
	VSP_CLIENT_RESET,       /* the client closed before it had taken, or sent, everything */
	VSP_TARGET_RESET,       /* the target closed before it had taken, or sent, everything */
	VSP_CANCELLED,          /* by vsp_relay_cancel */
	VSP_NO_MEMORY,          /* the kernel, or malloc, had none for it */
	VSP_DIAL_FAILED         /* the target of a direct route could not be reached */
};

/* How one socket of a relay is closed. */
enum vsp_close {
	VSP_CLOSE,   /* at once: the kernel delivers what it has */
	VSP_LINGER,  /* a FIN, and what still comes in is dropped until the peer has closed */
	VSP_RESET,   /* by RST, at once */
	VSP_DELIVER  /* by RST, once the peer's kernel has taken what was sent before */
};

/*
 * Return how a side is closed, the client's or the target's.  `whole` is whether the direction
 * that it receives is: its source's EOF was read, and the side's kernel has taken every byte.
 * `ended` is whether nothing more can come from the side, and `tcp` whether an RST can be sent.
 */
enum vsp_close vsp_close_of(enum vsp_reason reason, bool client, bool whole, bool ended, bool tcp);

/* What a struct vsp_news tells; a set. */
enum vsp_what {
	VSP_NEWS_OPENED = 1,    /* a direct route has accepted a client */
	VSP_NEWS_CONNECTED = 2, /* its target is connected */
	VSP_NEWS_ENDED = 4      /* both sockets are closed; vsp_relay_release is owed */
};

/* Why a dial has failed. */
enum vsp_cause {
	VSP_ERRNO,            /* `error` says */
	VSP_CLOSED_BEFORE_OK, /* the VMM closed instead of its OK; `error` may say how */
	VSP_MALFORMED         /* the VMM sent another line */
};

/* News of a relay. */
struct vsp_news {
	struct vsp_relay *relay;
	uint64_t upstream_bytes;
	uint64_t downstream_bytes;
	int64_t opened_us;    /* of CLOCK_MONOTONIC; of a direct relay, as all below */
	int64_t connected_us; /* 0 before its target is connected */
	int64_t ended_us;
	uint64_t vmm_port;    /* in a VMM's OK */
	uint32_t tag;
	uint32_t what;        /* a set of enum vsp_what */
	uint32_t reason;      /* enum vsp_reason */
	uint32_t route;       /* the tag of its route; UINT32_MAX: vsp_pump_add gave it */
	uint32_t cause;       /* enum vsp_cause, of VSP_DIAL_FAILED */
	int32_t error;
	int32_t unanswered;   /* a VMM's socket that still owes its OK: the caller's to close; or -1 */
	uint32_t line_size;
	uint32_t address_size;
	char line[32];              /* of VSP_MALFORMED */
	unsigned char address[128]; /* the client's, a struct sockaddr */
};

enum {
	VSP_BUCKETS = 16, /* of a histogram; the last one has no upper bound */
	VSP_REASONS = 9,  /* enum vsp_reason */
};

/* Durations by their upper bounds, which a struct vsp_target has, and their sum. */
struct vsp_histogram {
	uint64_t counts[VSP_BUCKETS];
	int64_t sum_us;
};

/*
 * The direct connections of a route that were over before they were reported, and of which only the
 * numbers are wanted.
 */
struct vsp_tally {
	uint64_t route;                /* its tag */
	uint64_t ended;                /* connections */
	uint64_t reasons[VSP_REASONS]; /* ... by the reason of their end */
	uint64_t upstream_bytes;
	uint64_t downstream_bytes;
	int64_t connected_us;          /* when the last target was connected, or 0 */
	struct vsp_histogram dials;    /* of connected targets */
	struct vsp_histogram lives;
};

/* How a relay is treated.  0 and NULL are no limit. */
struct vsp_policy {
	uint64_t idle_ms;       /* without a byte either way */
	uint64_t half_close_ms; /* without a byte after one side's EOF */
	uint64_t lifetime_ms;   /* in all */
	uint64_t rate;          /* bytes a second, each way */
	struct vsp_bandwidth *upstream_shared;   /* with other relays; */
	struct vsp_bandwidth *downstream_shared; /* the relay takes its own references */
	uint64_t hold_ms;   /* of silence before a client's FIN is passed on; 0: at once */
	uint64_t linger_ms; /* without progress until a closing socket is closed; 0: at once */
	int vmm;            /* the target is a VMM's socket: at its EOF ask whether its process has
			     * ended; it lived when the caller connected it */
};

/*
 * Make a bandwidth of `rate` bytes a second, above 0, for one direction of any number of relays;
 * NULL without memory.  The caller gives its reference back by vsp_bandwidth_unref.  Both calls
 * are allowed from any thread.
 */
struct vsp_bandwidth *vsp_bandwidth_new(uint64_t rate);
void vsp_bandwidth_unref(struct vsp_bandwidth *bandwidth);

/* A socket option of a target; `value` is an int, or the 64 bits that AF_VSOCK's options take. */
struct vsp_option {
	int level;
	int name;
	int64_t value;
};

/* The target of a direct route: how its clients are connected, and how they are treated. */
struct vsp_target {
	unsigned char address[128]; /* a struct sockaddr */
	unsigned int address_size;
	uint64_t connect_ms;   /* for a dial in all */
	uint64_t handshake_ms; /* for a VMM's OK, within connect_ms; 0: no other limit */
	char request[32];      /* what a VMM is sent first, with its newline; empty: nothing */
	bool answers;          /* it answers that by OK */
	unsigned int option_count;
	struct vsp_option options[8];
	struct vsp_policy policy;
	bool tallied; /* a connection that is over before it is reported is only counted */
	int64_t dial_bounds_us[15]; /* of a tally's histograms, ascending; INT64_MAX: no more */
	int64_t life_bounds_us[15];
};

/*
 * Make a limit of open connections, which allows none; NULL without memory.  The caller gives its
 * reference back by vsp_limit_unref.
 */
struct vsp_limit *vsp_limit_new(void);
void vsp_limit_unref(struct vsp_limit *limit);

/* Allow `most` open connections, from the next accept on. */
void vsp_limit_set(struct vsp_limit *limit, int64_t most);

/* Return how many are open now, and how many were not released or tallied. */
int64_t vsp_limit_live(const struct vsp_limit *limit);
int64_t vsp_limit_unreported(const struct vsp_limit *limit);

/* Start a pump with `threads` threads.  0 and *ret, the caller's to free; or a negative errno. */
int vsp_pump_new(unsigned threads, struct vsp_pump **ret);

/*
 * Cancel every relay, stop the threads, free everything.  News that was not reaped is lost.  Every
 * server is stopped before, and every relay released whose end was reaped.  No call may follow.
 */
void vsp_pump_free(struct vsp_pump *pump);

/* Return a descriptor that is readable while there is news to reap.  The pump owns it. */
int vsp_pump_fd(const struct vsp_pump *pump);

/* An accepted client: its socket is the caller's, non-blocking and close-on-exec. */
struct vsp_client {
	int fd;
	unsigned int size; /* of its address, a struct sockaddr without the zeros that end IPv4's */
	unsigned char address[128];
};

/*
 * Accept up to `room` clients from a listening socket's backlog.  Their number, below `room` when
 * the backlog is empty; a negative errno where not even the first could be accepted: -EAGAIN when
 * the backlog is empty, else see accept(2).
 */
int vsp_accept(int listener, struct vsp_client *ret_clients, int room);

/*
 * Take over two connected stream sockets, blocking or not, and relay until both have ended.
 * 0 and *ret, valid until vsp_relay_release, and both descriptors are the pump's; or a negative
 * errno, and both descriptors are still the caller's.
 */
int vsp_pump_add(struct vsp_pump *pump, uint32_t tag, int client, int target,
		 const struct vsp_policy *policy, struct vsp_relay **ret);

/*
 * Ask for a relay's end, by vsp_close_of; at the second call without waiting for what is being
 * delivered.  The end is reaped like any other.
 */
void vsp_relay_cancel(struct vsp_relay *relay);

/* Return the bytes that the target's and the client's socket have taken so far; they only grow. */
uint64_t vsp_relay_upstream(const struct vsp_relay *relay);
uint64_t vsp_relay_downstream(const struct vsp_relay *relay);

/* Return when a byte last moved, in milliseconds of CLOCK_MONOTONIC; 0 before it has begun. */
uint64_t vsp_relay_active(const struct vsp_relay *relay);

/* Return whether nothing more goes upstream, and downstream. */
bool vsp_relay_upstream_done(const struct vsp_relay *relay);
bool vsp_relay_downstream_done(const struct vsp_relay *relay);

/*
 * Return the descriptor of the target's socket, or the client's; -1 once it is closed.  The relay
 * owns it: to use it, take a duplicate.
 */
int vsp_relay_descriptor(const struct vsp_relay *relay, bool target);

/* Return a duplicate of it, the caller's to close; or a negative errno, -EBADF once it is closed. */
int vsp_relay_duplicate(const struct vsp_relay *relay, bool target);

/*
 * Have the threads accept at a listening socket, non-blocking and open until vsp_server_stop, and
 * connect its clients to `target`, within both limits.  `tag` names the server, a small number that
 * no other one has; `route` is for the news of its relays.  0 and *ret, valid until
 * vsp_server_stop; or a negative errno.
 */
int vsp_pump_serve(struct vsp_pump *pump, uint32_t tag, uint32_t route, int listener,
		   const struct vsp_target *target, struct vsp_limit *own, struct vsp_limit *shared,
		   struct vsp_server **ret);

/* Accept no more; when it returns nothing does.  The relays go on.  The handle is invalid. */
void vsp_server_stop(struct vsp_server *server);

/*
 * Return the tag of a server that has halted, each once; or -1.  It accepts no more, and still has
 * to be stopped.  *ret_error is 0 where a limit is reached, or accept(2)'s errno.
 */
int64_t vsp_pump_halted(struct vsp_pump *pump, int *ret_error);

/* Give a direct relay the tag by which later news names it. */
void vsp_relay_set_tag(struct vsp_relay *relay, uint32_t tag);

/* Write up to `room` news to `ret_news`, and return how many were written. */
int vsp_pump_reap(struct vsp_pump *pump, struct vsp_news *ret_news, int room);

/* Give back a relay whose end was reaped, once nothing reads it any more; its handle is invalid. */
void vsp_relay_release(struct vsp_relay *relay);

/* Take the tally of one route.  Whether there was one with a connection. */
bool vsp_pump_tally(struct vsp_pump *pump, struct vsp_tally *ret_tally);

/*
 * Ask every thread to show that its loop turns, and to publish its news; and return how many have
 * not answered.  A thread that is well answers within one turn.
 */
void vsp_pump_ask(struct vsp_pump *pump);
unsigned vsp_pump_silent(const struct vsp_pump *pump);

#endif
