/* A pump thread and its inbox. */

#ifndef VSP_THREAD_H
#define VSP_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "loop.h"
#include "outbox.h"
#include "relay.h"
#include "server.h"

struct vsp_thread {
	struct vsp_loop loop;      /* touched by the thread alone */
	struct vsp_outbox *outbox;   /* the pump's; where its relays' news goes */
	struct vsp_servers *servers; /* the pump's; where it accepts */
	uint64_t trimmed_ms; /* when spare pipes were last closed */
	bool running;        /* until it is stopped; touched by the thread alone */
	pthread_t id;
	int wake; /* an eventfd: the inbox has something */
	_Atomic unsigned asked;    /* how often vsp_thread_ask was called */
	_Atomic unsigned answered; /* ... as the thread last saw it */
	pthread_mutex_t mutex;     /* of the inbox: relays to start or to cancel, and `stopping` */
	struct vsp_relay *inbox;
	struct vsp_relay **inbox_tail;
	bool stopping;
};

/*
 * Start a zeroed thread, which publishes to `outbox`, accepts at `servers` and may open as many
 * pipes as `pipes_left` says.  0, or a negative errno, and nothing of it is left.
 */
int vsp_thread_start(struct vsp_thread *thread, struct vsp_outbox *outbox,
		     struct vsp_servers *servers, _Atomic int *pipes_left);

/* End the thread's relays and the thread.  Returns once it has ended. */
void vsp_thread_stop(struct vsp_thread *thread);

/* Have the thread run a new relay.  From the caller's thread. */
void vsp_thread_give(struct vsp_thread *thread, struct vsp_relay *relay);

/* Have the relay's thread end it.  From the caller's thread. */
void vsp_thread_cancel(struct vsp_relay *relay);

/* Ask the thread to show that its loop turns; and whether it has not answered yet. */
void vsp_thread_ask(struct vsp_thread *thread);
bool vsp_thread_is_silent(const struct vsp_thread *thread);

#endif
