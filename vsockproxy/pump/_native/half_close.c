/*
 * Half-closes: how the end of one direction is passed on, or held back.
 *
 * Some VMMs take a FIN for the end of both directions and drop what the guest still answers.
 * Whether an answer is still owed cannot be known, so a client's FIN is held while anything moves
 * either way, and passed on after a silence.  The portable pump has the same rule in
 * pump/portable.py.
 */

#include "half_close.h"

/* Whether the client's socket tells a close from a half-close, and it was a close. */
static bool client_has_closed(const struct vsp_relay *relay)
{
	return relay->sides[CLIENT].gone;
}

void vsp_half_close(struct vsp_relay *relay, int direction)
{
	if (relay->halves[direction].flow != VSP_WHOLE)
		return;
	if (vsp_half_is_done(&relay->halves[!direction]))
		return; /* both directions are: the close sends the FIN */
	if (direction == UPSTREAM && relay->hold_ms && !client_has_closed(relay))
		relay->held = true;
	else
		vsp_side_shut(&relay->sides[!direction]);
}

uint64_t vsp_held_fin_due(const struct vsp_relay *relay)
{
	/* Bytes that the client does not take are no silence: their answer is not over. */
	if (!relay->held || vsp_half_is_pending(&relay->halves[DOWNSTREAM], &relay->sides[CLIENT]))
		return NEVER;
	return vsp_relay_active(relay) + relay->hold_ms;
}

bool vsp_held_fin_serve(struct vsp_relay *relay, const struct vsp_loop *loop)
{
	if (!relay->held || (!client_has_closed(relay) && vsp_held_fin_due(relay) > loop->now_ms))
		return false;
	relay->held = false;
	vsp_side_shut(&relay->sides[TARGET]);
	return true;
}
