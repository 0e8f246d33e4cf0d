/* The process at the other end of a Unix socket. */

#ifndef VSP_PEER_H
#define VSP_PEER_H

#include <stdbool.h>

/*
 * Return whether the process that listened at a Unix socket's other end (SO_PEERCRED, unix(7)) is
 * dead.  False where the kernel does not tell: before Linux 5.3.
 */
bool vsp_peer_has_ended(int fd);

/*
 * Return whether that process is dead or is about to be: the kernel closes its sockets before it
 * counts as dead.  A process that /proc hides is seen only once dead.
 */
bool vsp_peer_is_exiting(int fd);

#endif
