/* The calls of pump.h that concern the whole pump. */

#define _GNU_SOURCE

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "outbox.h"
#include "pipe.h"
#include "pump.h"
#include "relay.h"
#include "route.h"
#include "server.h"
#include "thread.h"

struct vsp_pump {
	struct vsp_outbox outbox;
	struct vsp_servers servers;
	struct vsp_loop **loops; /* of the threads */
	_Atomic int pipes_left;
	unsigned thread_count;
	struct vsp_thread threads[];
};

/* Open what the threads share.  0, or a negative errno; vsp_pump_free follows in either case. */
static int pump_prepare(struct vsp_pump *pump, unsigned threads)
{
	int error = vsp_outbox_open(&pump->outbox);

	atomic_init(&pump->pipes_left, vsp_pipes_most());
	pump->loops = calloc(threads, sizeof(struct vsp_loop *));
	if (!error && !pump->loops)
		error = -ENOMEM;
	for (unsigned i = 0; i < threads && !error; i++)
		pump->loops[i] = &pump->threads[i].loop;
	vsp_servers_open(&pump->servers, &pump->outbox, pump->loops, threads);
	return error;
}

int vsp_pump_new(unsigned threads, struct vsp_pump **ret)
{
	struct vsp_pump *pump = calloc(1, sizeof(*pump) + threads * sizeof(pump->threads[0]));
	int error;

	if (!pump)
		return -ENOMEM;
	error = pump_prepare(pump, threads);
	while (!error && pump->thread_count < threads) {
		error = vsp_thread_start(&pump->threads[pump->thread_count], &pump->outbox,
					 &pump->servers, &pump->pipes_left);
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
	vsp_outbox_close(&pump->outbox);
	vsp_servers_close(&pump->servers);
	free(pump->loops);
	free(pump);
}

int vsp_pump_fd(const struct vsp_pump *pump)
{
	return pump->outbox.readable;
}

int vsp_pump_add(struct vsp_pump *pump, uint32_t tag, int client, int target,
		 const struct vsp_policy *policy, struct vsp_relay **ret)
{
	struct vsp_relay *relay = vsp_relay_new(tag, client, target, policy);
	struct vsp_thread *thread = &pump->threads[0];

	if (!relay)
		return -ENOMEM;
	for (unsigned i = 1; i < pump->thread_count; i++)
		if (atomic_load(&pump->threads[i].loop.load) < atomic_load(&thread->loop.load))
			thread = &pump->threads[i];
	*ret = relay;
	vsp_thread_give(thread, relay);
	return 0;
}

void vsp_relay_cancel(struct vsp_relay *relay)
{
	vsp_thread_cancel(relay);
}

int vsp_pump_serve(struct vsp_pump *pump, uint32_t tag, uint32_t route, int listener,
		   const struct vsp_target *target, struct vsp_limit *own, struct vsp_limit *shared,
		   struct vsp_server **ret)
{
	struct vsp_route *made = vsp_route_new(route, target, own, shared);
	int error;

	if (!made)
		return -ENOMEM;
	error = vsp_servers_add(&pump->servers, tag, made, listener, ret);
	vsp_route_unref(made); /* the server has its own reference */
	return error;
}

int64_t vsp_pump_halted(struct vsp_pump *pump, int *ret_error)
{
	return vsp_outbox_reap_halt(&pump->outbox, ret_error);
}

int vsp_pump_reap(struct vsp_pump *pump, struct vsp_news *ret_news, int room)
{
	return vsp_outbox_reap(&pump->outbox, ret_news, room);
}

bool vsp_pump_tally(struct vsp_pump *pump, struct vsp_tally *ret_tally)
{
	return vsp_outbox_tally(&pump->outbox, ret_tally);
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
