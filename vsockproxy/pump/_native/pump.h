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

/* How a relay ended. */
enum vsp_reason {
	VSP_FINISHED,           /* nothing was lost: both ended, or one closed with nothing under way */
	VSP_HALF_CLOSE_TIMEOUT, /* no byte for half_close_ms after one side's EOF */
	VSP_IDLE_TIMEOUT,       /* no byte either way for idle_ms */
	VSP_MAX_LIFETIME,       /* it was open for lifetime_ms */
	VSP_CLIENT_RESET,       /* the client closed before it had taken, or sent, everything */
	VSP_TARGET_RESET,       /* the target closed before it had taken, or sent, everything */
	VSP_CANCELLED,          /* by vsp_relay_cancel */
	VSP_NO_MEMORY           /* the kernel, or malloc, had none for it */
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

/* A relay that has ended: both its sockets are closed, and its handle is invalid. */
struct vsp_end {
	uint32_t tag;
	uint64_t upstream_bytes;
	uint64_t downstream_bytes;
	int reason; /* enum vsp_reason */
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
	int vmm;            /* the target is a VMM's socket: ask whether its process has ended */
};

/*
 * Make a bandwidth of `rate` bytes a second, above 0, for one direction of any number of relays;
 * NULL without memory.  The caller gives its reference back by vsp_bandwidth_unref.  Both calls
 * are allowed from any thread.
 */
struct vsp_bandwidth *vsp_bandwidth_new(uint64_t rate);
void vsp_bandwidth_unref(struct vsp_bandwidth *bandwidth);

/* Start a pump with `threads` threads.  0 and *ret, the caller's to free; or a negative errno. */
int vsp_pump_new(unsigned threads, struct vsp_pump **ret);

/*
 * Cancel every relay, stop the threads, free everything.  Ends that were not reaped are lost.
 * No call may follow.
 */
void vsp_pump_free(struct vsp_pump *pump);

/* Return a descriptor that is readable while there are ends to reap.  The pump owns it. */
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
 * 0 and *ret, valid until its end is reaped, and both descriptors are the pump's; or a negative
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

/* Write up to `room` ends to `ret_ends`, free their relays, and return how many were written. */
int vsp_pump_reap(struct vsp_pump *pump, struct vsp_end *ret_ends, int room);

/*
 * Ask every thread to show that its loop turns; and return how many have not answered.  A thread
 * that is well answers within one turn.
 */
void vsp_pump_ask(struct vsp_pump *pump);
unsigned vsp_pump_silent(const struct vsp_pump *pump);

#endif
