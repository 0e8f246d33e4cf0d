/* accept(2). */

#ifndef VSP_ACCEPT_H
#define VSP_ACCEPT_H

#include "pump.h"

/* Accept one client, the caller's.  0, or a negative errno: -EAGAIN without one. */
int vsp_accept_one(int listener, struct vsp_client *ret_client);

#endif
