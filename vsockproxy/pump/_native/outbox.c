/*
 * News of the relays of all threads: threads publish it, the caller reaps it.
 *
 * A relay is in the list once, however much it has to tell: what is reaped is all that was
 * published of it until then.  So a connection that is over before the caller looks costs it one
 * piece of news, or none where only its numbers are wanted: then it is in its route's tally.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "outbox.h"
#include "tally.h"

int vsp_outbox_open(struct vsp_outbox *outbox)
{
	pthread_mutex_init(&outbox->mutex, NULL);
	outbox->tail = &outbox->first;
	outbox->readable = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return outbox->readable < 0 ? -errno : 0;
}

/*
 * Take up to `room` relays off the list, and what was published of each.  Returns how many: fewer
 * than `room` is all.  In one hold of the mutex, so that none comes twice: the caller gives a relay
 * its tag between the call that tells of its opening and the one that tells of its end.
 */
static int outbox_take(struct vsp_outbox *outbox, struct vsp_news *ret_news, int room)
{
	struct vsp_relay *relay;
	int count = 0;

	pthread_mutex_lock(&outbox->mutex);
	for (relay = outbox->first; relay && count < room; relay = relay->next_published) {
		ret_news[count].relay = relay;
		ret_news[count++].what = relay->published;
		relay->published = 0;
	}
	outbox->first = relay;
	if (!relay)
		outbox->tail = &outbox->first;
	pthread_mutex_unlock(&outbox->mutex);
	return count;
}

void vsp_outbox_close(struct vsp_outbox *outbox)
{
	struct vsp_tally tally;
	struct vsp_news news;

	while (outbox->tail && outbox_take(outbox, &news, 1))
		if (news.what & VSP_NEWS_ENDED)
			vsp_relay_unref(news.relay);
	while (vsp_outbox_tally(outbox, &tally))
		;
	if (outbox->readable >= 0)
		close(outbox->readable);
	pthread_mutex_destroy(&outbox->mutex);
}

/* ---- from the threads ---- */

static void outbox_wake(struct vsp_outbox *outbox)
{
	const uint64_t one = 1;

	(void)!write(outbox->readable, &one, sizeof(one));
}

/* Count a relay of which no news was published, under the mutex.  Frees it. */
static void outbox_count(struct vsp_outbox *outbox, struct vsp_relay *relay)
{
	struct vsp_route *route = relay->direct->route;

	if (vsp_tally_add(relay)) {
		route->next_tallied = outbox->tallied;
		outbox->tallied = vsp_route_ref(route);
	}
	vsp_relay_unref(relay);
}

/* Publish one relay, under the mutex.  It is the caller's from here on. */
static void outbox_put(struct vsp_outbox *outbox, struct vsp_relay *relay)
{
	bool listed = relay->published;

	if (vsp_relay_is_countable(relay)) {
		outbox_count(outbox, relay);
		return;
	}
	relay->published |= relay->changes;
	relay->changes = 0;
	if (listed)
		return;
	relay->next_published = NULL;
	*outbox->tail = relay;
	outbox->tail = &relay->next_published;
}

void vsp_outbox_publish(struct vsp_outbox *outbox, struct vsp_loop *loop, bool all)
{
	struct vsp_relay *relay = loop->changed;
	bool had_news;
	bool had_tally;
	bool wake;

	if (!relay)
		return;
	loop->changed = NULL;
	loop->changed_tail = &loop->changed;
	loop->tell_ms = NEVER;
	loop->told_ms = loop->now_ms;
	pthread_mutex_lock(&outbox->mutex);
	had_news = outbox->first;
	had_tally = outbox->tallied;
	while (relay) {
		struct vsp_relay *next = relay->next_changed;

		if (!all && vsp_relay_is_new(relay, loop))
			vsp_relay_list(relay, loop);
		else
			outbox_put(outbox, relay);
		relay = next;
	}
	/* Each list for itself: the caller empties them one after the other. */
	wake = (outbox->first && !had_news) || (outbox->tallied && !had_tally);
	pthread_mutex_unlock(&outbox->mutex);
	if (wake)
		outbox_wake(outbox);
}

void vsp_outbox_publish_halt(struct vsp_outbox *outbox, struct vsp_halt *halt)
{
	pthread_mutex_lock(&outbox->mutex);
	halt->published = true;
	halt->next = outbox->halts;
	outbox->halts = halt;
	pthread_mutex_unlock(&outbox->mutex);
	outbox_wake(outbox);
}

/* ---- from the caller ---- */

void vsp_outbox_withdraw_halt(struct vsp_outbox *outbox, struct vsp_halt *halt)
{
	struct vsp_halt **place = &outbox->halts;

	pthread_mutex_lock(&outbox->mutex);
	if (halt->published) {
		while (*place != halt)
			place = &(*place)->next;
		*place = halt->next;
		halt->published = false;
	}
	pthread_mutex_unlock(&outbox->mutex);
}

int64_t vsp_outbox_reap_halt(struct vsp_outbox *outbox, int *ret_error)
{
	struct vsp_halt *halt;
	int64_t tag = -1;

	pthread_mutex_lock(&outbox->mutex);
	halt = outbox->halts;
	if (halt) {
		outbox->halts = halt->next;
		halt->published = false;
		tag = halt->tag;
		*ret_error = halt->error;
	}
	pthread_mutex_unlock(&outbox->mutex);
	return tag;
}

/* Fill in what only a direct relay has to tell. */
static void news_of_direct(struct vsp_news *news, struct vsp_direct *direct)
{
	news->route = direct->route->tag;
	news->opened_us = direct->opened_us;
	if (news->what & VSP_NEWS_OPENED) {
		news->address_size = direct->address_size;
		memcpy(news->address, direct->address, direct->address_size);
	}
	if (news->what & VSP_NEWS_CONNECTED) {
		news->connected_us = direct->connected_us;
		news->vmm_port = direct->vmm_port;
	}
	if (!(news->what & VSP_NEWS_ENDED))
		return;
	news->ended_us = direct->ended_us;
	if (news->reason == VSP_DIAL_FAILED) {
		news->cause = direct->cause;
		news->error = direct->error;
		news->line_size = direct->line_size;
		memcpy(news->line, direct->line, direct->line_size);
	}
	news->unanswered = direct->unanswered;
	direct->unanswered = -1;
}

int vsp_outbox_reap(struct vsp_outbox *outbox, struct vsp_news *ret_news, int room)
{
	uint64_t wakes;
	int count;

	/* Before the list is looked at: news that is published later wakes again. */
	(void)!read(outbox->readable, &wakes, sizeof(wakes));
	count = outbox_take(outbox, ret_news, room);
	for (struct vsp_news *news = ret_news; news < ret_news + count; news++) {
		struct vsp_relay *relay = news->relay;

		news->tag = relay->tag;
		news->upstream_bytes = vsp_relay_upstream(relay);
		news->downstream_bytes = vsp_relay_downstream(relay);
		news->reason = news->what & VSP_NEWS_ENDED ? relay->reason : VSP_FINISHED;
		news->route = UINT32_MAX;
		news->unanswered = -1;
		news->line_size = 0;
		news->address_size = 0;
		if (relay->direct)
			news_of_direct(news, relay->direct);
	}
	return count;
}

bool vsp_outbox_tally(struct vsp_outbox *outbox, struct vsp_tally *ret_tally)
{
	struct vsp_route *route;

	pthread_mutex_lock(&outbox->mutex);
	route = outbox->tallied;
	if (route) {
		outbox->tallied = route->next_tallied;
		vsp_tally_take(route, ret_tally);
	}
	pthread_mutex_unlock(&outbox->mutex);
	if (!route)
		return false;
	vsp_route_reported(route, (int64_t)ret_tally->ended);
	vsp_route_unref(route);
	return true;
}
