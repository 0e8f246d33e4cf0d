/* Half-closes: how the end of one direction is passed on, or held back. */

#ifndef VSP_HALF_CLOSE_H
#define VSP_HALF_CLOSE_H

#include "relay.h"

/*
 * Pass the end of a whole direction on as a FIN.  A client's FIN is held instead where the relay
 * has `hold_ms`, unless the client has closed altogether.
 */
void vsp_half_close(struct vsp_relay *relay, int direction);

/* Return when a held FIN is passed on unless something moves before, or NEVER. */
uint64_t vsp_held_fin_due(const struct vsp_relay *relay);

/*
 * Pass a held FIN on, where the client has closed altogether or it was silent for long.  Whether it
 * did.
 */
bool vsp_held_fin_serve(struct vsp_relay *relay, const struct vsp_loop *loop);

#endif
