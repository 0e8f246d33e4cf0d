/*
 * Servers: the listening sockets at which the threads accept, and dial at once.
 *
 * Every thread waits at every socket, and the kernel wakes one of them (EPOLLEXCLUSIVE).  accept(2)
 * is called under the server's mutex, so that a stop holds from its return on.  An event that a
 * thread has taken may be about a server that is stopped since: so it names its server by number.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "accept.h"
#include "server.h"
#include "side.h"
#include "turn.h"

enum {
	BATCH = 64, /* clients accepted before other relays get their turn */
};

struct vsp_server {
	struct vsp_servers *servers;
	struct vsp_route *route; /* a reference */
	int listener;            /* the caller's */
	int domain;
	uint64_t data;           /* of its events: an odd number */
	_Atomic int references;  /* the table's, and one for each thread that accepts */
	pthread_mutex_t mutex;
	bool stopped;            /* under the mutex */
	struct vsp_halt halt;
};

static void server_unref(struct vsp_server *server)
{
	if (atomic_fetch_sub(&server->references, 1) != 1)
		return;
	vsp_route_unref(server->route);
	pthread_mutex_destroy(&server->mutex);
	free(server);
}

/* Have no thread accept any more.  Under the server's mutex. */
static void server_leave(struct vsp_server *server)
{
	const struct vsp_servers *servers = server->servers;

	if (server->stopped)
		return;
	server->stopped = true;
	for (unsigned i = 0; i < servers->loop_count; i++)
		epoll_ctl(servers->loops[i]->epoll, EPOLL_CTL_DEL, server->listener, NULL);
}

/* Accept no more, and tell the caller: `error` is accept(2)'s, 0 where a limit is reached. */
static void server_halt(struct vsp_server *server, int error)
{
	bool halted;

	pthread_mutex_lock(&server->mutex);
	halted = !server->stopped;
	server_leave(server);
	if (halted) {
		server->halt.error = error;
		vsp_outbox_publish_halt(server->servers->outbox, &server->halt);
	}
	pthread_mutex_unlock(&server->mutex);
}

static void client_reset(const struct vsp_client *client, int domain)
{
	const struct vsp_side side = {.fd = client->fd, .domain = (unsigned char)domain};

	vsp_side_reset_at_close(&side);
	close(client->fd);
}

/* Accept one client, for which a place has been taken.  Its relay; or NULL and a negative errno. */
static struct vsp_relay *client_accept(struct vsp_server *server, struct vsp_loop *loop,
				       int *ret_error)
{
	struct vsp_client client;
	struct vsp_relay *relay = NULL;

	*ret_error = vsp_accept_one(server->listener, &client);
	if (*ret_error)
		return NULL;
	relay = vsp_relay_new_direct(server->route, &client, server->domain, loop);
	if (!relay) {
		client_reset(&client, server->domain);
		*ret_error = -ENOMEM;
	}
	return relay;
}

/*
 * Accept one client.  Its relay; or NULL and a negative errno: -EAGAIN also where the server is
 * stopped, 0 where a limit is reached.
 *
 * The mutex is held from before a place is taken until it is given back for want of a client: once
 * vsp_server_stop has returned, each place that is taken belongs to a relay.
 */
static struct vsp_relay *server_accept(struct vsp_server *server, struct vsp_loop *loop,
				       int *ret_error)
{
	struct vsp_relay *relay = NULL;

	*ret_error = -EAGAIN;
	pthread_mutex_lock(&server->mutex);
	if (!server->stopped) {
		*ret_error = 0;
		if (vsp_route_take(server->route)) {
			relay = client_accept(server, loop, ret_error);
			if (!relay) {
				vsp_route_give(server->route);
				vsp_route_reported(server->route, 1);
			}
		}
	}
	pthread_mutex_unlock(&server->mutex);
	return relay;
}

/* Accept a client and begin to serve it.  Whether there may be another one. */
static bool server_serve_one(struct vsp_server *server, struct vsp_loop *loop)
{
	int error;
	struct vsp_relay *relay = server_accept(server, loop, &error);

	if (relay)
		vsp_turn_accept(relay, loop);
	else if (error != -EAGAIN)
		server_halt(server, -error);
	return relay;
}

void vsp_server_stop(struct vsp_server *server)
{
	struct vsp_servers *servers = server->servers;

	pthread_mutex_lock(&servers->mutex);
	servers->slots[server->halt.tag] = NULL;
	pthread_mutex_unlock(&servers->mutex);
	pthread_mutex_lock(&server->mutex);
	server_leave(server);
	pthread_mutex_unlock(&server->mutex);
	vsp_outbox_withdraw_halt(servers->outbox, &server->halt);
	server_unref(server);
}

/* ---- the table ---- */

void vsp_servers_open(struct vsp_servers *servers, struct vsp_outbox *outbox,
		      struct vsp_loop **loops, unsigned loop_count)
{
	pthread_mutex_init(&servers->mutex, NULL);
	servers->outbox = outbox;
	servers->loops = loops;
	servers->loop_count = loop_count;
}

void vsp_servers_close(struct vsp_servers *servers)
{
	free(servers->slots);
	pthread_mutex_destroy(&servers->mutex);
}

/* Put a server into its slot.  0 or -ENOMEM. */
static int servers_put(struct vsp_servers *servers, struct vsp_server *server)
{
	size_t slot = server->halt.tag;
	int error = 0;

	pthread_mutex_lock(&servers->mutex);
	if (slot >= servers->count) {
		size_t count = 2 * slot + 16;
		struct vsp_server **slots =
			realloc(servers->slots, count * sizeof(struct vsp_server *));

		error = slots ? 0 : -ENOMEM;
		if (slots) {
			for (size_t i = servers->count; i < count; i++)
				slots[i] = NULL;
			servers->slots = slots;
			servers->count = count;
		}
	}
	if (!error)
		servers->slots[slot] = server;
	pthread_mutex_unlock(&servers->mutex);
	return error;
}

int vsp_servers_add(struct vsp_servers *servers, uint32_t tag, struct vsp_route *route,
		    int listener, struct vsp_server **ret)
{
	static _Atomic uint32_t generation;
	struct vsp_server *server = calloc(1, sizeof(*server));
	struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE};
	socklen_t size = sizeof(server->domain);
	int error = 0;

	if (!server)
		return -ENOMEM;
	server->servers = servers;
	server->route = vsp_route_ref(route);
	server->listener = listener;
	server->halt.tag = tag;
	atomic_init(&server->references, 1);
	pthread_mutex_init(&server->mutex, NULL);
	getsockopt(listener, SOL_SOCKET, SO_DOMAIN, &server->domain, &size);
	server->data = (uint64_t)atomic_fetch_add(&generation, 1) << 32 | tag << 1 | 1;
	event.data.u64 = server->data;
	error = servers_put(servers, server);
	if (error) {
		server_unref(server);
		return error;
	}
	/* A thread that halts it at once waits until every thread has it. */
	pthread_mutex_lock(&server->mutex);
	for (unsigned i = 0; i < servers->loop_count && !error; i++)
		if (epoll_ctl(servers->loops[i]->epoll, EPOLL_CTL_ADD, listener, &event) < 0)
			error = -errno;
	pthread_mutex_unlock(&server->mutex);
	if (error)
		vsp_server_stop(server);
	else
		*ret = server;
	return error;
}

bool vsp_servers_own(uint64_t data)
{
	return data & 1; /* the others are pointers */
}

/* Return the server that an event is about, with a reference; NULL where it is stopped. */
static struct vsp_server *servers_find(struct vsp_servers *servers, uint64_t data)
{
	struct vsp_server *server;

	pthread_mutex_lock(&servers->mutex);
	server = servers->slots[(uint32_t)data >> 1];
	if (server && server->data != data)
		server = NULL;
	if (server)
		atomic_fetch_add(&server->references, 1);
	pthread_mutex_unlock(&servers->mutex);
	return server;
}

void vsp_servers_accept(struct vsp_servers *servers, uint64_t data, struct vsp_loop *loop)
{
	struct vsp_server *server = servers_find(servers, data);

	if (!server)
		return;
	for (int i = 0; i < BATCH && server_serve_one(server, loop); i++)
		;
	server_unref(server);
}
