/* The calls of pump.h. */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

int vsp_pump_new(unsigned threads, struct vsp_pump **ret)
{
	struct vsp_pump *pump = calloc(1, sizeof(*pump) + threads * sizeof(pump->threads[0]));

	if (!pump)
		return -ENOMEM;
	pthread_mutex_init(&pump->mutex, NULL);
	atomic_init(&pump->pipes_left, vsp_pipes_most());
	pump->done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pump->done < 0) {
		int error = errno;

		vsp_pump_free(pump);
		return -error;
	}
	while (pump->thread_count < threads) {
		int error = vsp_thread_start(pump, &pump->threads[pump->thread_count]);

		if (error) {
			vsp_pump_free(pump);
			return error;
		}
		pump->thread_count++;
	}
	*ret = pump;
	return 0;
}

void vsp_pump_free(struct vsp_pump *pump)
{
	for (unsigned i = 0; i < pump->thread_count; i++)
		vsp_thread_stop(&pump->threads[i]);
	while (pump->ended) {
		struct vsp_relay *relay = pump->ended;

		pump->ended = relay->next_ended;
		vsp_relay_unref(relay);
	}
	if (pump->done >= 0)
		close(pump->done);
	pthread_mutex_destroy(&pump->mutex);
	free(pump);
}

int vsp_pump_fd(const struct vsp_pump *pump)
{
	return pump->done;
}

/* How much of an address says something: an IPv4 one ends in zeros. */
static unsigned int address_size(const struct vsp_client *client, socklen_t size)
{
	const struct sockaddr *address = (const struct sockaddr *)client->address;

	if (address->sa_family == AF_INET)
		return offsetof(struct sockaddr_in, sin_zero);
	return size < sizeof(client->address) ? size : sizeof(client->address);
}

int vsp_accept(int listener, struct vsp_client *ret_clients, int room)
{
	int count = 0;

	while (count < room) {
		struct vsp_client *client = &ret_clients[count];
		socklen_t size = sizeof(client->address);

		client->fd = accept4(listener, (struct sockaddr *)client->address, &size,
				     SOCK_CLOEXEC | SOCK_NONBLOCK);
		/* After the first one an error is for the next call to tell, if it lasts. */
		if (client->fd < 0)
			return count > 0 ? count : -errno;
		client->size = address_size(client, size);
		count++;
	}
	return count;
}

int vsp_pump_add(struct vsp_pump *pump, uint32_t tag, int client, int target,
		 const struct vsp_policy *policy, struct vsp_relay **ret)
{
	struct vsp_relay *relay = calloc(1, sizeof(*relay));
	struct vsp_thread *thread = &pump->threads[0];

	if (!relay)
		return -ENOMEM;
	atomic_init(&relay->references, 1);
	if (vsp_throttle_new(policy->rate, policy->upstream_limit,
			     &relay->halves[UPSTREAM].throttle) < 0 ||
	    vsp_throttle_new(policy->rate, policy->downstream_limit,
			     &relay->halves[DOWNSTREAM].throttle) < 0) {
		vsp_relay_unref(relay);
		return -ENOMEM;
	}
	for (unsigned i = 1; i < pump->thread_count; i++)
		if (atomic_load(&pump->threads[i].load) < atomic_load(&thread->load))
			thread = &pump->threads[i];
	atomic_fetch_add(&thread->load, 1);
	for (int which = CLIENT; which <= TARGET; which++) {
		relay->sides[which].relay = relay;
		relay->sides[which].fd = which == CLIENT ? client : target;
		/* A request is often here already; of an answer an edge will tell. */
		relay->sides[which].readable = which == CLIENT;
		relay->sides[which].writable = true;
	}
	relay->thread = thread;
	relay->tag = tag;
	relay->idle_ms = policy->idle_ms;
	relay->half_close_ms = policy->half_close_ms;
	relay->end_ms = policy->lifetime_ms ? policy->lifetime_ms : NEVER;
	relay->hold = policy->hold;
	relay->answered = true;
	relay->timer = NO_TIMER;
	*ret = relay;
	vsp_inbox_put(relay, false);
	return 0;
}

void vsp_relay_cancel(struct vsp_relay *relay)
{
	vsp_inbox_put(relay, true);
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
	return atomic_load_explicit(&relay->halves[UPSTREAM].done, memory_order_relaxed);
}

bool vsp_relay_downstream_done(const struct vsp_relay *relay)
{
	return atomic_load_explicit(&relay->halves[DOWNSTREAM].done, memory_order_relaxed);
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
	/* The thread forgets the number before it closes it: still known, it was still ours. */
	if (vsp_relay_descriptor(relay, target) == fd)
		return copy;
	close(copy);
	return -EBADF;
}

int vsp_pump_reap(struct vsp_pump *pump, struct vsp_end *ret_ends, int room)
{
	uint64_t wakes;
	int count = 0;

	/* Before the list is looked at: what comes later wakes again. */
	(void)!read(pump->done, &wakes, sizeof(wakes));
	while (count < room) {
		struct vsp_relay *relay;

		pthread_mutex_lock(&pump->mutex);
		relay = pump->ended;
		if (relay)
			pump->ended = relay->next_ended;
		pthread_mutex_unlock(&pump->mutex);
		if (!relay)
			break;
		ret_ends[count++] = (struct vsp_end){
			.tag = relay->tag,
			.upstream_bytes = vsp_relay_upstream(relay),
			.downstream_bytes = vsp_relay_downstream(relay),
			.reason = relay->reason,
			.error = relay->error,
		};
		vsp_relay_unref(relay);
	}
	return count;
}

void vsp_pump_ask(struct vsp_pump *pump)
{
	for (unsigned i = 0; i < pump->thread_count; i++) {
		atomic_fetch_add(&pump->threads[i].asked, 1);
		vsp_thread_wake(&pump->threads[i]);
	}
}

unsigned vsp_pump_silent(const struct vsp_pump *pump)
{
	unsigned silent = 0;

	for (unsigned i = 0; i < pump->thread_count; i++) {
		const struct vsp_thread *thread = &pump->threads[i];

		silent += atomic_load(&thread->answered) != atomic_load(&thread->asked);
	}
	return silent;
}
