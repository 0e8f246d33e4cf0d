/* The ended relays of all threads, on their way to the caller. */

#ifndef VSP_ENDS_H
#define VSP_ENDS_H

#include <pthread.h>
#include <stddef.h>

#include "loop.h"
#include "relay.h"

struct vsp_ends {
	int readable; /* an eventfd, which is readable while there are ends; or -1 */
	pthread_mutex_t mutex;
	struct vsp_relay *first;
};

/* Prepare an empty list.  0, or a negative errno; vsp_ends_close follows in either case. */
int vsp_ends_open(struct vsp_ends *ends);

/* Free the relays that were not reaped, and the list's descriptor. */
void vsp_ends_close(struct vsp_ends *ends);

/* Hand over a loop's ended relays; return how many.  From the loop's thread. */
size_t vsp_ends_publish(struct vsp_ends *ends, struct vsp_loop *loop);

/* Write up to `room` ends to `ret_ends` and give back the caller's references; return how many. */
int vsp_ends_reap(struct vsp_ends *ends, struct vsp_end *ret_ends, int room);

#endif
