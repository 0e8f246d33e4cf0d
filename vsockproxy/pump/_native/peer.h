/* The process at the other end of a Unix socket: a VMM's, whose end is a reset. */

#ifndef VSP_PEER_H
#define VSP_PEER_H

#include <stdbool.h>
#include <sys/types.h>

#include "pump.h"

enum {
	PEERS = 64, /* processes that a thread knows, each by one descriptor */
};

/* What a side knows of its process; from VSP_KNOWN on, the place of a struct vsp_peer. */
enum vsp_vmm {
	VSP_NO_VMM, /* there is none, or it had handed its listener on and ended before the dial: the
		     * end of the stream is a clean one */
	VSP_ASKED,  /* it was alive; the socket tells whether it still is */
	VSP_KNOWN,
};

/* A process that was alive when one of its sockets was connected. */
struct vsp_peer {
	pid_t pid;     /* 0: the place is empty */
	int fd;        /* /proc/PID/statm, or a pidfd where /proc hides the process */
	bool is_pidfd;
	unsigned uses; /* relays; it is not replaced while it has any */
	unsigned char address[sizeof(((struct vsp_target *)0)->address)];
};

/* The processes that the relays of one thread know. */
struct vsp_peers {
	struct vsp_peer places[PEERS];
};

/*
 * Return what to know of the process that listened at a Unix socket's other end (SO_PEERCRED,
 * unix(7)); vsp_peers_forget takes it back.  `address` is where the socket has just been connected
 * to, as in struct vsp_target.
 */
enum vsp_vmm vsp_peers_meet(struct vsp_peers *peers, int fd, const unsigned char *address);

/*
 * Return whether a socket's process is dead or is about to be: the kernel closes its sockets
 * before it counts as dead.  A process that /proc hides is seen only once dead.  False where the
 * kernel does not tell: before Linux 5.3.
 */
bool vsp_peers_is_exiting(const struct vsp_peers *peers, enum vsp_vmm vmm, int fd);

/* Give back what vsp_peers_meet has returned. */
void vsp_peers_forget(struct vsp_peers *peers, enum vsp_vmm vmm);

/* Close the descriptors; no relay is left. */
void vsp_peers_close(struct vsp_peers *peers);

#endif
