/* A relay: how it begins and leaves its thread, and what any thread may read of it meanwhile. */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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
		/* A request is often here already; an edge will announce an answer. */
		relay->sides[which].readable = which == CLIENT;
		relay->sides[which].writable = true;
	}
	relay->tag = tag;
	relay->idle_ms = policy->idle_ms;
	relay->half_close_ms = policy->half_close_ms;
	relay->end_ms = policy->lifetime_ms ? policy->lifetime_ms : NEVER;
	relay->hold_ms = relay_bound(policy->hold_ms);
	relay->linger_ms = relay_bound(policy->linger_ms);
	relay->sides[TARGET].vmm = policy->vmm ? VSP_ASKED : VSP_NO_VMM;
	relay->timer.place = NOT_SET;
	return relay;
}

struct vsp_relay *vsp_relay_new_direct(struct vsp_route *route, const struct vsp_client *client,
				       int domain, struct vsp_loop *loop)
{
	struct vsp_relay *relay = vsp_relay_new(UINT32_MAX, client->fd, -1, &route->target.policy);

	if (!relay)
		return NULL;
	relay->direct = calloc(1, sizeof(*relay->direct) + client->size);
	if (!relay->direct) {
		vsp_relay_unref(relay);
		return NULL;
	}
	relay->direct->route = vsp_route_ref(route);
	relay->direct->unanswered = -1;
	relay->direct->address_size = client->size;
	memcpy(relay->direct->address, client->address, client->size);
	relay->direct->opened_us = vsp_clock_us();
	relay->sides[CLIENT].domain = (unsigned char)domain;
	relay->thread = loop->thread;
	return relay;
}

static void direct_free(struct vsp_direct *direct)
{
	if (!direct)
		return;
	if (direct->unanswered >= 0)
		close(direct->unanswered);
	vsp_route_unref(direct->route);
	free(direct);
}

void vsp_relay_unref(struct vsp_relay *relay)
{
	if (atomic_fetch_sub(&relay->references, 1) != 1)
		return;
	direct_free(relay->direct);
	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++)
		vsp_throttle_free(relay->halves[direction].throttle);
	free(relay);
}

/* ---- in its thread ---- */

int vsp_relay_enter(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay->started = true;
	relay->next_live = loop->live;
	if (loop->live)
		loop->live->previous_live = relay;
	loop->live = relay;
	loop->live_count++;
	return vsp_timers_reserve(&loop->timers, loop->live_count);
}

int vsp_relay_watch(struct vsp_relay *relay, struct vsp_loop *loop)
{
	int error = 0;

	for (int which = CLIENT; which <= TARGET && !error; which++)
		if (relay->sides[which].fd >= 0 && !relay->sides[which].watched)
			error = vsp_side_watch(&relay->sides[which], loop->epoll);
	return error;
}

bool vsp_relay_is_new(const struct vsp_relay *relay, const struct vsp_loop *loop)
{
	return relay->direct && relay->direct->route->target.tallied &&
	       (relay->changes & VSP_NEWS_OPENED) && !(relay->changes & VSP_NEWS_ENDED) &&
	       (uint64_t)relay->direct->opened_us / 1000 + NEW_MS > loop->now_ms;
}

bool vsp_relay_is_countable(const struct vsp_relay *relay)
{
	const unsigned passed = VSP_NEWS_OPENED | VSP_NEWS_ENDED;
	const struct vsp_direct *direct = relay->direct;

	return direct && (relay->changes & passed) == passed && direct->route->target.tallied &&
	       relay->reason != VSP_DIAL_FAILED && relay->reason != VSP_CANCELLED &&
	       direct->unanswered < 0;
}

/* Have the loop publish the relay's changes in time. */
static void relay_hurry(const struct vsp_relay *relay, struct vsp_loop *loop)
{
	uint64_t tell_ms = loop->told_ms + TELL_MS;

	/* A task awaits the end of a relay that the caller has given. */
	if (!relay->direct)
		tell_ms = loop->now_ms;
	else if (vsp_relay_is_new(relay, loop))
		tell_ms = (uint64_t)relay->direct->opened_us / 1000 + NEW_MS;
	else if (vsp_relay_is_countable(relay) && !vsp_route_is_near(relay->direct->route))
		tell_ms = loop->told_ms + COUNT_MS;
	if (tell_ms < loop->tell_ms)
		loop->tell_ms = tell_ms;
}

void vsp_relay_list(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay->next_changed = NULL;
	*loop->changed_tail = relay;
	loop->changed_tail = &relay->next_changed;
	relay_hurry(relay, loop);
}

void vsp_relay_tell(struct vsp_relay *relay, struct vsp_loop *loop, enum vsp_what what)
{
	bool listed = relay->changes;

	relay->changes |= (unsigned char)what;
	if (listed)
		relay_hurry(relay, loop);
	else
		vsp_relay_list(relay, loop);
}

void vsp_relay_leave(struct vsp_relay *relay, struct vsp_loop *loop)
{
	relay->ended = true;
	vsp_peers_forget(&loop->peers, relay->sides[TARGET].vmm);
	vsp_timer_remove(&loop->timers, &relay->timer);
	if (relay->previous_live)
		relay->previous_live->next_live = relay->next_live;
	else
		loop->live = relay->next_live;
	if (relay->next_live)
		relay->next_live->previous_live = relay->previous_live;
	loop->live_count--;
	atomic_fetch_sub(&loop->load, 1);
	if (relay->direct) {
		relay->direct->ended_us = vsp_clock_us();
		vsp_route_give(relay->direct->route);
	}
	/* Published when this turn is over: a later event of the same turn may be its own. */
	vsp_relay_tell(relay, loop, VSP_NEWS_ENDED);
}

/* ---- in any thread, by the caller's reference ---- */

void vsp_relay_set_tag(struct vsp_relay *relay, uint32_t tag)
{
	relay->tag = tag; /* the threads do not read it */
}

void vsp_relay_release(struct vsp_relay *relay)
{
	if (relay->direct)
		vsp_route_reported(relay->direct->route, 1);
	vsp_relay_unref(relay);
}

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
