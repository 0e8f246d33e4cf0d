/* One socket of a relay: what its edges have said, and what is done to it. */

#ifndef VSP_SIDE_H
#define VSP_SIDE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct vsp_relay;

/*
 * A socket is registered once, edge-triggered: each edge is remembered in a flag, which is
 * cleared when the kernel answers EAGAIN.
 */
struct vsp_side {
	struct vsp_relay *relay;
	_Atomic int fd; /* -1 before it is closed */
	short error;    /* the errno that ended it, or 0 */
	unsigned char domain; /* AF_INET... */
	bool watched;   /* it is in the epoll set */
	bool sendable;  /* EPOLLOUT is asked for: see vsp_side_block */
	bool urgent;    /* it has, or had, urgent data, which ends reads early */
	bool readable;  /* recv may have something */
	bool writable;  /* send may take something */
	bool fin;       /* the peer's FIN is on its way, or read */
	bool gone;      /* the peer has closed: it takes nothing more */
	bool shut;      /* our FIN is out */
	unsigned char vmm; /* enum vsp_vmm: its process, of which the end is a reset */
	bool lossless;  /* ECONNRESET only says that it left bytes unread: a Unix client */
	unsigned char close; /* enum vsp_close; once its relay closes */
	unsigned queued;     /* bytes that its peer's kernel had not taken; once its relay closes */
};

/* Learn what kind of socket it is, unless that is known: its close depends on it as well. */
void vsp_side_ask_domain(struct vsp_side *side);

/* Watch the socket for edges in an epoll set.  0, or a negative errno. */
int vsp_side_watch(struct vsp_side *side, int epoll);

/* Take the socket out of the epoll set. */
void vsp_side_ignore(struct vsp_side *side, int epoll);

/* Remember what an edge says: `events` is a set of EPOLLIN... */
void vsp_side_note(struct vsp_side *side, int epoll, uint32_t events);

/*
 * Note that the socket takes nothing now.  EPOLLOUT is asked for only from here until the next
 * edge: a Unix socket gives one at each read of its peer, which would wake the thread for nothing.
 */
void vsp_side_block(struct vsp_side *side, int epoll);

/* recv(2) without waiting, which also clears `readable` where the read emptied the socket. */
ssize_t vsp_side_receive(struct vsp_side *side, char *data, size_t room);

/*
 * Return whether a stream that has ended by `error` was truncated.  A FIN before a reset says that
 * it was not.
 */
bool vsp_side_is_truncated(const struct vsp_side *side);

/* Send a FIN, once. */
void vsp_side_shut(struct vsp_side *side);

/* Return how many bytes the peer's kernel has not taken yet; 0 where the kernel does not tell. */
unsigned vsp_side_queued(const struct vsp_side *side);

/* Return whether the socket is TCP. */
bool vsp_side_is_tcp(const struct vsp_side *side);

/* Return whether a short read means an empty socket, as epoll(7) says. */
bool vsp_side_is_plain(const struct vsp_side *side);

/* Have the close send an RST, where a FIN would look like the stream's end.  TCP only. */
void vsp_side_reset_at_close(const struct vsp_side *side);

/* Close the socket. */
void vsp_side_close(struct vsp_side *side, int epoll);

#endif
