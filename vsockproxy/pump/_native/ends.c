/* The ended relays of all threads: threads publish them, the caller reaps them. */

#define _GNU_SOURCE

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ends.h"

int vsp_ends_open(struct vsp_ends *ends)
{
	pthread_mutex_init(&ends->mutex, NULL);
	ends->readable = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ends->readable < 0 ? -errno : 0;
}

void vsp_ends_close(struct vsp_ends *ends)
{
	while (ends->first) {
		struct vsp_relay *relay = ends->first;

		ends->first = relay->next_ended;
		vsp_relay_unref(relay);
	}
	if (ends->readable >= 0)
		close(ends->readable);
	pthread_mutex_destroy(&ends->mutex);
}

size_t vsp_ends_publish(struct vsp_ends *ends, struct vsp_loop *loop)
{
	const uint64_t one = 1;
	struct vsp_relay *last = loop->ended;
	size_t count = 1;
	bool wake;

	if (!last)
		return 0;
	for (; last->next_ended; last = last->next_ended)
		count++;
	pthread_mutex_lock(&ends->mutex);
	wake = !ends->first; /* else the caller is awake, or about to be */
	last->next_ended = ends->first;
	ends->first = loop->ended;
	pthread_mutex_unlock(&ends->mutex);
	loop->ended = NULL;
	if (wake)
		(void)!write(ends->readable, &one, sizeof(one));
	return count;
}

static struct vsp_relay *ends_take(struct vsp_ends *ends)
{
	struct vsp_relay *relay;

	pthread_mutex_lock(&ends->mutex);
	relay = ends->first;
	if (relay)
		ends->first = relay->next_ended;
	pthread_mutex_unlock(&ends->mutex);
	return relay;
}

int vsp_ends_reap(struct vsp_ends *ends, struct vsp_end *ret_ends, int room)
{
	struct vsp_relay *relay;
	uint64_t wakes;
	int count = 0;

	/* Before the list is looked at: an end that is published later wakes again. */
	(void)!read(ends->readable, &wakes, sizeof(wakes));
	while (count < room && (relay = ends_take(ends))) {
		ret_ends[count++] = (struct vsp_end){
			.tag = relay->tag,
			.upstream_bytes = vsp_relay_upstream(relay),
			.downstream_bytes = vsp_relay_downstream(relay),
			.reason = relay->reason,
		};
		vsp_relay_unref(relay);
	}
	return count;
}
