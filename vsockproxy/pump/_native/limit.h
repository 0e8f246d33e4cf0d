/* How many connections may be open at a time: of one route, or of all direct routes together. */

#ifndef VSP_LIMIT_H
#define VSP_LIMIT_H

#include <stdbool.h>

#include "pump.h"

/* Take another reference to a limit. */
struct vsp_limit *vsp_limit_ref(struct vsp_limit *limit);

/* Take the place of one connection; whether there was one. */
bool vsp_limit_take(struct vsp_limit *limit);

/* Whether half the places are taken, with the one just given back: a client may wait for it. */
bool vsp_limit_is_near(const struct vsp_limit *limit);

/* Give the place back as the connection's sockets are closed, ... */
void vsp_limit_give(struct vsp_limit *limit);

/* ... and note that the caller knows of the ends of so many. */
void vsp_limit_reported(struct vsp_limit *limit, int64_t connections);

#endif
