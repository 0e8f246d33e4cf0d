/* The calls of pump.h that concern the whole pump, and accepting. */

#define _GNU_SOURCE

#include <errno.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "ends.h"
#include "pipe.h"
#include "pump.h"
#include "relay.h"
#include "thread.h"

struct vsp_pump {
	struct vsp_ends ends;
	_Atomic int pipes_left;
	unsigned thread_count;
	struct vsp_thread threads[];
};

int vsp_pump_new(unsigned threads, struct vsp_pump **ret)
{
	struct vsp_pump *pump = calloc(1, sizeof(*pump) + threads * sizeof(pump->threads[0]));
	int error;

	if (!pump)
		return -ENOMEM;
	atomic_init(&pump->pipes_left, vsp_pipes_most());
	error = vsp_ends_open(&pump->ends);
	while (!error && pump->thread_count < threads) {
		error = vsp_thread_start(&pump->threads[pump->thread_count], &pump->ends,
					 &pump->pipes_left);
		if (!error)
			pump->thread_count++;
	}
	if (error) {
		vsp_pump_free(pump);
		return error;
	}
	*ret = pump;
	return 0;
}

void vsp_pump_free(struct vsp_pump *pump)
{
	for (unsigned i = 0; i < pump->thread_count; i++)
		vsp_thread_stop(&pump->threads[i]);
	vsp_ends_close(&pump->ends);
	free(pump);
}

int vsp_pump_fd(const struct vsp_pump *pump)
{
	return pump->ends.readable;
}

/* Return the size of an address without the zeros that end an IPv4 one. */
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
		/* An error after the first client is left to the next call, if it lasts. */
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
	struct vsp_relay *relay = vsp_relay_new(tag, client, target, policy);
	struct vsp_thread *thread = &pump->threads[0];

	if (!relay)
		return -ENOMEM;
	for (unsigned i = 1; i < pump->thread_count; i++)
		if (atomic_load(&pump->threads[i].load) < atomic_load(&thread->load))
			thread = &pump->threads[i];
	*ret = relay;
	vsp_thread_give(thread, relay);
	return 0;
}

void vsp_relay_cancel(struct vsp_relay *relay)
{
	vsp_thread_cancel(relay);
}

int vsp_pump_reap(struct vsp_pump *pump, struct vsp_end *ret_ends, int room)
{
	return vsp_ends_reap(&pump->ends, ret_ends, room);
}

void vsp_pump_ask(struct vsp_pump *pump)
{
	for (unsigned i = 0; i < pump->thread_count; i++)
		vsp_thread_ask(&pump->threads[i]);
}

unsigned vsp_pump_silent(const struct vsp_pump *pump)
{
	unsigned silent = 0;

	for (unsigned i = 0; i < pump->thread_count; i++)
		silent += vsp_thread_is_silent(&pump->threads[i]);
	return silent;
}
