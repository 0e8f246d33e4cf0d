/* News of relays and servers, on its way from all threads to the caller. */

#ifndef VSP_OUTBOX_H
#define VSP_OUTBOX_H

#include <pthread.h>
#include <stdint.h>

#include "loop.h"
#include "relay.h"

/* A server that has halted; a member of it. */
struct vsp_halt {
	uint32_t tag;
	int error;
	bool published;
	struct vsp_halt *next;
};

struct vsp_outbox {
	int readable; /* an eventfd, which is readable while there is news; or -1 */
	pthread_mutex_t mutex;
	struct vsp_relay *first;
	struct vsp_relay **tail;
	struct vsp_route *tallied; /* whose tallies have a connection */
	struct vsp_halt *halts;
};

/* Prepare an empty outbox.  0, or a negative errno; vsp_outbox_close follows in either case. */
int vsp_outbox_open(struct vsp_outbox *outbox);

/* Free the ended relays that were not reaped, and the outbox's descriptor. */
void vsp_outbox_close(struct vsp_outbox *outbox);

/*
 * Hand over what a loop's relays have to tell; `all` is whether this includes direct relays that
 * have just been opened.  From the loop's thread.
 */
void vsp_outbox_publish(struct vsp_outbox *outbox, struct vsp_loop *loop, bool all);

/* See vsp_pump_reap and vsp_pump_tally. */
int vsp_outbox_reap(struct vsp_outbox *outbox, struct vsp_news *ret_news, int room);
bool vsp_outbox_tally(struct vsp_outbox *outbox, struct vsp_tally *ret_tally);

/* Hand over a halt, from any thread; take one that is not reaped back. */
void vsp_outbox_publish_halt(struct vsp_outbox *outbox, struct vsp_halt *halt);
void vsp_outbox_withdraw_halt(struct vsp_outbox *outbox, struct vsp_halt *halt);

/* See vsp_pump_halted. */
int64_t vsp_outbox_reap_halt(struct vsp_outbox *outbox, int *ret_error);

#endif
