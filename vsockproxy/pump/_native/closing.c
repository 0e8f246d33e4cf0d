/*
 * The end of a relay: how its two sockets are closed.
 *
 * A receiver must not take a truncated stream for a whole one, and must get a whole one to its
 * last byte.  So a TCP socket that receives a truncated direction is closed by RST.  One that
 * receives a whole direction is closed only when nothing more comes from it: the kernel answers
 * bytes that arrive for a closed socket, and unread ones, with an RST, which throws away what the
 * peer has not taken.  AF_UNIX and AF_VSOCK have no RST to send.
 *
 * The waiting is bounded: it is over when the peer's kernel has taken nothing for linger_ms, or had
 * everything for DROP_MS, where an RST only hurts peers whose kernel forgets unread bytes then.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#include "closing.h"
#include "dial.h"

enum {
	FIRST_PAUSE_MS = 1, /* doubled each time without progress, up to: */
	LONGEST_PAUSE_MS = 128,
	DROP_MS = 1000, /* arbitrary */
};

enum vsp_close vsp_close_of(enum vsp_reason reason, bool client, bool whole, bool ended, bool tcp)
{
	if (whole)
		return ended ? VSP_CLOSE : VSP_LINGER;
	if (!tcp)
		return VSP_CLOSE;
	/* What the target sent before its reset is the client's. */
	return client && reason == VSP_TARGET_RESET ? VSP_DELIVER : VSP_RESET;
}

static enum vsp_close closing_of(const struct vsp_relay *relay, int which)
{
	const struct vsp_side *side = &relay->sides[which];
	bool whole = relay->halves[!which].flow == VSP_WHOLE;
	bool ended = side->error || relay->halves[which].flow == VSP_WHOLE;

	return vsp_close_of((enum vsp_reason)relay->reason, which == CLIENT, whole, ended,
			    vsp_side_is_tcp(side));
}

/* ---- one side ---- */

static void side_close(struct vsp_side *side, struct vsp_loop *loop)
{
	side->queued = 0;
	if (side->close == VSP_RESET || side->close == VSP_DELIVER)
		vsp_side_reset_at_close(side);
	vsp_side_close(side, loop->epoll);
}

/* Drop what has come in.  Whether nothing more can. */
static bool side_drop_input(struct vsp_side *side, struct vsp_loop *loop)
{
	for (size_t dropped = 0; dropped < BUDGET;) {
		ssize_t count = recv(side->fd, loop->scratch, SCRATCH, MSG_DONTWAIT);

		if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
			return true;
		if (count < 0)
			return false;
		dropped += (size_t)count;
	}
	return false; /* the timer comes back to the rest */
}

/* Close the side if it is its time; note what its peer's kernel has taken.  Whether it did. */
static bool side_progress(struct vsp_side *side, struct vsp_loop *loop)
{
	unsigned before = side->queued;

	side->queued = vsp_side_queued(side);
	if (side->close == VSP_LINGER ? side_drop_input(side, loop) : side->gone || !side->queued)
		side_close(side, loop);
	return side->queued < before;
}

/* ---- both ---- */

/* Return when what is left is closed without further waiting. */
static uint64_t closing_end_ms(const struct vsp_relay *relay)
{
	bool queued = relay->sides[CLIENT].queued || relay->sides[TARGET].queued;
	bool short_wait = !queued && relay->linger_ms > DROP_MS;

	return relay->progress_ms + (short_wait ? DROP_MS : relay->linger_ms);
}

void vsp_closing_move(struct vsp_relay *relay, struct vsp_loop *loop)
{
	bool progress = false;
	uint64_t end_ms;

	for (int which = CLIENT; which <= TARGET; which++)
		if (relay->sides[which].fd >= 0)
			progress |= side_progress(&relay->sides[which], loop);
	if (relay->sides[CLIENT].fd < 0 && relay->sides[TARGET].fd < 0) {
		vsp_relay_leave(relay, loop);
		return;
	}
	if (progress) {
		relay->progress_ms = loop->now_ms;
		relay->pause_ms = FIRST_PAUSE_MS;
	}
	end_ms = closing_end_ms(relay);
	if (end_ms > loop->now_ms + relay->pause_ms)
		end_ms = loop->now_ms + relay->pause_ms;
	vsp_timer_set(&loop->timers, &relay->timer, end_ms);
}

void vsp_closing_due(struct vsp_relay *relay, struct vsp_loop *loop)
{
	if (relay->pause_ms < LONGEST_PAUSE_MS)
		relay->pause_ms *= 2;
	vsp_closing_move(relay, loop);
	if (!relay->ended && loop->now_ms >= closing_end_ms(relay))
		vsp_closing_hurry(relay, loop);
}

void vsp_closing_hurry(struct vsp_relay *relay, struct vsp_loop *loop)
{
	if (relay->ended)
		return;
	for (int which = CLIENT; which <= TARGET; which++)
		if (relay->sides[which].fd >= 0)
			side_close(&relay->sides[which], loop);
	vsp_relay_leave(relay, loop);
}

void vsp_closing_begin(struct vsp_relay *relay, struct vsp_loop *loop, enum vsp_reason reason)
{
	if (relay->closing)
		return;
	if (vsp_dial_is_under_way(relay))
		vsp_dial_give_up(relay, loop);
	relay->closing = true;
	relay->reason = (unsigned char)reason;
	relay->progress_ms = loop->now_ms;
	relay->pause_ms = FIRST_PAUSE_MS;
	for (int which = CLIENT; which <= TARGET; which++)
		relay->sides[which].close = (unsigned char)closing_of(relay, which);
	for (int direction = UPSTREAM; direction <= DOWNSTREAM; direction++)
		vsp_half_drop(&relay->halves[direction], &loop->pipes, VSP_TRUNCATED);
	for (int which = CLIENT; which <= TARGET; which++) {
		struct vsp_side *side = &relay->sides[which];

		if (side->fd < 0) /* a target that was not reached */
			continue;
		if (side->close == VSP_LINGER)
			vsp_side_shut(side);
		if (side->close == VSP_LINGER || side->close == VSP_DELIVER)
			side->queued = vsp_side_queued(side);
		else
			side_close(side, loop);
	}
	vsp_closing_move(relay, loop);
}
