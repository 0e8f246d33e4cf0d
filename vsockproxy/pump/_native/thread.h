/* A pump thread and its inbox. */

#ifndef VSP_THREAD_H
#define VSP_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "ends.h"
#include "loop.h"
#include "relay.h"

struct vsp_thread {
	struct vsp_loop loop;      /* touched by the thread alone */
	struct vsp_ends *ends;     /* the pump's; where its ended relays go */
	uint64_t trimmed_ms; /* when spare pipes were last closed */
	pthread_t id;
	int wake; /* an eventfd: the inbox has something */
	_Atomic size_t load;       /* relays that were given to it and have not ended */
	_Atomic unsigned asked;    /* how often vsp_thread_ask was called */
	_Atomic unsigned answered; /* ... as the thread last saw it */
	pthread_mutex_t mutex;     /* of the inbox: relays to start or to cancel, and `stopping` */
	struct vsp_relay *inbox;
	struct vsp_relay **inbox_tail;
	bool stopping;
};

/*
 * Start a zeroed thread, which publishes to `ends` and may open as many pipes as `pipes_left`
 * says.  0, or a negative errno, and nothing of it is left.
 */
int vsp_thread_start(struct vsp_thread *thread, struct vsp_ends *ends, _Atomic int *pipes_left);

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
