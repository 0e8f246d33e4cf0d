/* Bandwidth: token buckets, and the throttle that they put on one direction of a relay. */

#ifndef VSP_BANDWIDTH_H
#define VSP_BANDWIDTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pump.h"

enum {
	BUCKETS = 2,    /* of one direction: its own, and one shared with other relays */
	PERIOD_MS = 20, /* a direction without bandwidth tries again at the next one's beginning */
};

/* A bucket, and what one direction has had from it in a period. */
struct vsp_share {
	struct vsp_bandwidth *bucket; /* a reference; NULL where there is none */
	uint64_t period;
	uint64_t taken; /* bytes */
	bool refused;   /* it has asked for more than it may take */
};

/* What throttles one direction; an unthrottled direction has none. */
struct vsp_throttle {
	struct vsp_share shares[BUCKETS];
	uint64_t due_ms; /* no bandwidth is left until then; 0 where there is some */
};

/* Take another reference to a bandwidth. */
void vsp_bandwidth_ref(struct vsp_bandwidth *bandwidth);

/*
 * Throttle a direction to `rate` bytes a second and to what `shared` has left; 0 and NULL are no
 * limit.  0 and *ret, which is NULL without any limit and is the caller's to free; or -ENOMEM.
 * Takes a reference to `shared`.
 */
int vsp_throttle_new(uint64_t rate, struct vsp_bandwidth *shared, struct vsp_throttle **ret);

/* Free a throttle and give back its references; NULL is allowed. */
void vsp_throttle_free(struct vsp_throttle *throttle);

/*
 * Take up to `most` bytes of bandwidth from every bucket; return how many.  A direction may take an
 * equal share of what a bucket has at the beginning of a period, by the number of directions that
 * wanted more in the one before.  At 0 it has to wait until `due_ms`.  What the caller does not use
 * goes back by vsp_throttle_return.  NULL is allowed in all these calls: an unthrottled direction.
 */
size_t vsp_throttle_take(struct vsp_throttle *throttle, size_t most, uint64_t now_ms);
void vsp_throttle_return(struct vsp_throttle *throttle, size_t unused);

/* Forget that there was none, once `due_ms` has come; NULL is allowed. */
void vsp_throttle_wake(struct vsp_throttle *throttle, uint64_t now_ms);

/* Return when there is bandwidth again, in milliseconds; 0 when there is some now. */
uint64_t vsp_throttle_due(const struct vsp_throttle *throttle);

#endif
