/* Servers: the listening sockets at which the threads accept, and dial at once. */

#ifndef VSP_SERVER_H
#define VSP_SERVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "outbox.h"
#include "route.h"

/* The servers of a pump, by their tags. */
struct vsp_servers {
	pthread_mutex_t mutex;
	struct vsp_server **slots; /* NULL where there is none */
	size_t count;
	struct vsp_outbox *outbox;
	struct vsp_loop **loops; /* every thread's; the pump's */
	unsigned loop_count;
};

/* Prepare an empty table; vsp_servers_close follows when every server is stopped. */
void vsp_servers_open(struct vsp_servers *servers, struct vsp_outbox *outbox,
		      struct vsp_loop **loops, unsigned loop_count);
void vsp_servers_close(struct vsp_servers *servers);

/* See vsp_pump_serve. */
int vsp_servers_add(struct vsp_servers *servers, uint32_t tag, struct vsp_route *route,
		    int listener, struct vsp_server **ret);

/* Whether an event of a thread's epoll set is a listening socket's, by its data. */
bool vsp_servers_own(uint64_t data);

/* Accept and begin to serve the clients of the listening socket that an event is about. */
void vsp_servers_accept(struct vsp_servers *servers, uint64_t data, struct vsp_loop *loop);

#endif
