/*
 * The native pump: threads that move bytes between pairs of connected sockets.
 *
 * One header for two readers: the C compiler, and cffi, which takes the declarations as
 * they stand.  So: no preprocessor, and nothing but what a caller needs.
 *
 * A relay is one pair: `client` is the side that was accepted, `target` the side that was
 * dialled; upstream is client to target.  Everything but the moving happens in the caller's
 * thread; one thread at a time may call into one pump.
 */

struct vsp_pump;
struct vsp_relay;
struct vsp_limit;

/* How a relay ended. */
enum vsp_reason {
	VSP_FINISHED,           /* both sides said EOF, all of it delivered */
	VSP_HALF_CLOSE_TIMEOUT, /* one said EOF, the other then nothing for too long */
	VSP_IDLE_TIMEOUT,       /* no byte either way for too long */
	VSP_MAX_LIFETIME,       /* it was open for as long as it may */
	VSP_CLIENT_RESET,       /* the client went away without taking all */
	VSP_TARGET_RESET,       /* the target went away without taking all */
	VSP_CANCELLED           /* vsp_relay_cancel */
};

/* A relay that has ended: both its sockets are closed, its handle is no more. */
struct vsp_end {
	uint32_t tag;
	uint64_t upstream_bytes;
	uint64_t downstream_bytes;
	int reason; /* enum vsp_reason */
	int error;  /* the errno behind a reset, or 0 */
};

/* How a relay is to be treated.  0 and NULL are no bound. */
struct vsp_policy {
	uint64_t idle_ms;       /* without a byte either way */
	uint64_t half_close_ms; /* without a byte after one side's EOF */
	uint64_t lifetime_ms;   /* in all */
	uint64_t rate;          /* bytes a second, each way */
	struct vsp_limit *upstream_limit;   /* shared with other relays; */
	struct vsp_limit *downstream_limit; /* the relay takes references of its own */
	int hold;               /* keep a client's EOF from a target that owes it an answer */
};

/*
 * A bandwidth of `rate` bytes a second, above 0, for any number of relays; or NULL.  The
 * reference is the caller's, until it gives it back.  Both calls from any thread.
 */
struct vsp_limit *vsp_limit_new(uint64_t rate);
void vsp_limit_unref(struct vsp_limit *limit);

/* Start `threads` pump threads.  0 and *ret, or a negative errno. */
int vsp_pump_new(unsigned threads, struct vsp_pump **ret);

/*
 * Cancel every relay, stop the threads, free everything.  Ends that were not reaped are
 * lost.  No call may follow.
 */
void vsp_pump_free(struct vsp_pump *pump);

/* A descriptor that is readable while there are ends to reap.  Owned by the pump. */
int vsp_pump_fd(const struct vsp_pump *pump);

/* A client that has come in: its socket is the caller's, non-blocking and close-on-exec. */
struct vsp_client {
	int fd;
	unsigned int size; /* of its address, a struct sockaddr without the zeros behind IPv4's */
	unsigned char address[128];
};

/*
 * Accept up to `room` of the clients that wait at a listening socket: how many, fewer than
 * `room` when no more wait.  A negative errno where not even the first could be had: -EAGAIN
 * when none waits, else see accept(2).
 */
int vsp_accept(int listener, struct vsp_client *ret_clients, int room);

/*
 * Take over two connected stream sockets, blocking or not, and relay until both have ended.
 * 0, *ret (valid until its end is reaped) and both descriptors are the pump's; or a
 * negative errno, and both descriptors are still the caller's.
 */
int vsp_pump_add(struct vsp_pump *pump, uint32_t tag, int client, int target,
		 const struct vsp_policy *policy, struct vsp_relay **ret);

/* Ask for a relay's end: the client by reset.  Its end is reaped like any other. */
void vsp_relay_cancel(struct vsp_relay *relay);

/* Bytes that the target's and the client's socket have taken so far; they only grow. */
uint64_t vsp_relay_upstream(const struct vsp_relay *relay);
uint64_t vsp_relay_downstream(const struct vsp_relay *relay);

/* When a byte last moved, in milliseconds of CLOCK_MONOTONIC; 0 before it has begun. */
uint64_t vsp_relay_active(const struct vsp_relay *relay);

/* Whether nothing more will go upstream, and downstream. */
bool vsp_relay_upstream_done(const struct vsp_relay *relay);
bool vsp_relay_downstream_done(const struct vsp_relay *relay);

/* The descriptor of the target's socket, or the client's; -1 once it is closed.  It is the
 * relay's: whoever wants to use it takes a duplicate. */
int vsp_relay_descriptor(const struct vsp_relay *relay, bool target);

/* A duplicate of it, the caller's to close; a negative errno, EBADF once it is closed. */
int vsp_relay_duplicate(const struct vsp_relay *relay, bool target);

/* Write up to `room` ends to `ret_ends` and free their relays.  How many were written. */
int vsp_pump_reap(struct vsp_pump *pump, struct vsp_end *ret_ends, int room);

/* Have every thread show that it goes on; and how many have not done so yet. */
void vsp_pump_ask(struct vsp_pump *pump);
unsigned vsp_pump_silent(const struct vsp_pump *pump);
