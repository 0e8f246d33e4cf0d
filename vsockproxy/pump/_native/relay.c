/* A relay: how it begins and leaves its thread, and what any thread may read of it meanwhile. */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"
#include "relay.h"

/* Return a bound of at most 49 days. */
static uint32_t relay_bound(uint64_t bound_ms)
{
	return bound_ms < UINT32_MAX ? (uint32_t)bound_ms : UINT32_MAX;
}

struct vsp_relay *vsp_relay_new(uint32_t tag, int client, int target,
				const struct vsp_policy *policy)
{
	struct vsp_relay *relay = calloc(1, sizeof(*relay));

	if (!relay)
		return NULL;
	atomic_init(&relay->references, 1);
	if (vsp_throttle_new(policy->rate, policy->upstream_shared,
			     &relay->halves[UPSTREAM].throttle) < 0 ||
	    vsp_throttle_new(policy->rate, policy->downstream_shared,
			     &relay->halves[DOWNSTREAM].throttle) < 0) {
		vsp_relay_unref(relay);
		return NULL;
	}
	for (int which = CLIENT; which <= TARGET; which++) {
		relay->sides[which].relay = relay;
		relay->sides[which].fd = which == CLIENT ? client : target;
		/* A request is often here already; an edge will tell of an answer. */
		relay->sides[which].readable = which == CLIENT;
		relay->sides[which].writable = true;
	}
	relay->tag = tag;
	relay->idle_ms = policy->idle_ms;
	relay->half_close_ms = policy->half_close_ms;
	relay->end_ms = policy->lifetime_ms ? policy->lifetime_ms : NEVER;
	relay->hold_ms = relay_bound(policy->hold_ms);
	relay->linger_ms = relay_bound(policy->linger_ms);
	relay->vmm = policy->vmm;
	relay->timer.place = NOT_SET;
	return relay;
}

void vsp_relay_unref(struct vsp_relay *relay)
{
	if (atomic_fetch_sub(&relay->references, 1) != 1)
		return;
	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++)
		vsp_throttle_free(relay->halves[direction].throttle);
	free(relay);
}

/* ---- in its thread ---- */

int vsp_relay_enter(struct vsp_relay *relay, struct vsp_loop *loop)
{
	int error;

	relay->started = true;
	relay->next_live = loop->live;
	if (loop->live)
		loop->live->previous_live = relay;
	loop->live = relay;
	loop->live_count++;
	for (int which = CLIENT; which <= TARGET; which++)
		vsp_side_ask_domain(&relay->sides[which]);
	relay->sides[CLIENT].lossless = relay->sides[CLIENT].domain == AF_UNIX;
	error = vsp_timers_reserve(&loop->timers, loop->live_count);
	for (int which = CLIENT; which <= TARGET && !error; which++)
		error = vsp_side_watch(&relay->sides[which], loop->epoll);
	/* One that listened, handed its socket on and has ended before says nothing by its end. */
	relay->sides[TARGET].vmm = relay->vmm && !vsp_peer_has_ended(relay->sides[TARGET].fd);
	return error;
}

void vsp_relay_leave(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay->ended = true;
	vsp_timer_remove(&loop->timers, &relay->timer);
	if (relay->previous_live)
		relay->previous_live->next_live = relay->next_live;
	else
		loop->live = relay->next_live;
	if (relay->next_live)
		relay->next_live->previous_live = relay->previous_live;
	loop->live_count--;
	/* Published when this turn is over: a later event of the same turn may be its own. */
	relay->next_ended = loop->ended;
	loop->ended = relay;
}

/* ---- in any thread, by the caller's reference ---- */

uint64_t vsp_relay_upstream(const struct vsp_relay *relay)
{
	return atomic_load_explicit(&relay->halves[UPSTREAM].bytes, memory_order_relaxed);
}

uint64_t vsp_relay_downstream(const struct vsp_relay *relay)
{
	return atomic_load_explicit(&relay->halves[DOWNSTREAM].bytes, memory_order_relaxed);
}

uint64_t vsp_relay_active(const struct vsp_relay *relay)
{
	return atomic_load_explicit(&relay->active_ms, memory_order_relaxed);
}

bool vsp_relay_upstream_done(const struct vsp_relay *relay)
{
	return vsp_half_is_done(&relay->halves[UPSTREAM]);
}

bool vsp_relay_downstream_done(const struct vsp_relay *relay)
{
	return vsp_half_is_done(&relay->halves[DOWNSTREAM]);
}

int vsp_relay_descriptor(const struct vsp_relay *relay, bool target)
{
	return relay->sides[target ? TARGET : CLIENT].fd;
}

int vsp_relay_duplicate(const struct vsp_relay *relay, bool target)
{
	int fd = vsp_relay_descriptor(relay, target);
	int copy;

	if (fd < 0)
		return -EBADF;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return -errno;
	/* The thread forgets the number before it closes it: an unchanged number was still ours. */
	if (vsp_relay_descriptor(relay, target) == fd)
		return copy;
	close(copy);
	return -EBADF;
}
