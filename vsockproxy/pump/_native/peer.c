/*
 * The process at the other end of a Unix socket.
 *
 * Asking a socket for its process takes four system calls, and eight at the end of a stream.  So a
 * thread keeps a descriptor of each VMM's process, which one read of /proc/PID/statm, or one poll
 * of a pidfd, proves to be alive.  Only that answer is taken from it; where it does not say so, the
 * socket is asked.
 *
 * Numbers of processes are used again.  A descriptor stays that of its process, and the number of a
 * process that is alive is not another's.  But a dead process may have left a listening socket
 * behind which still names it by that number: so a process is known for one address only.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "peer.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* asm-generic/socket.h; Linux 6.5 */
#endif

enum {
	EXITING = 0x4, /* PF_EXITING, linux/sched.h: among the flags that proc_pid_stat(5) shows */
};

/* Return the process as a pidfd, the caller's to close; -ESRCH where it has ended. */
static int peer_open(int fd, pid_t pid)
{
	int pidfd = -1;
	socklen_t size = sizeof(pidfd);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0)
		return pidfd;
	if (errno != ENOPROTOOPT)
		return errno == ESRCH || errno == EINVAL ? -ESRCH : -errno;
	if (pid <= 0) /* of a namespace that this process does not see */
		return -EPERM;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	return pidfd < 0 ? -errno : pidfd;
}

/* Whether /proc shows the process as exiting; false where it does not show the process. */
static bool process_is_exiting(pid_t pid)
{
	char text[512];
	char path[32];
	const char *field;
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return false;
	text[size] = '\0';
	/* "pid (name) state ppid pgrp session tty tpgid flags": the name may have anything in it. */
	field = strrchr(text, ')');
	for (int i = 0; field && i < 7; i++)
		field = strchr(field + 1, ' ');
	return field && (strtoul(field, NULL, 10) & EXITING);
}

/* Return the peer's process; 0 if it has none that this process sees, -1 if there is no peer. */
static pid_t peer_pid(int fd)
{
	struct ucred peer = {.pid = 0};
	socklen_t size = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ? -1 : peer.pid;
}

/* Whether a process has ended, by its pidfd. */
static bool pidfd_has_ended(int pidfd)
{
	struct pollfd end = {.fd = pidfd, .events = POLLIN};

	return poll(&end, 1, 0) > 0;
}

/*
 * Whether the socket's process is dead; `supposed` is whether it is taken for dead where there is no
 * descriptor to ask with.
 */
static bool peer_has_ended(int fd, bool supposed)
{
	pid_t pid = peer_pid(fd);
	bool ended;
	int pidfd;

	if (pid < 0)
		return false;
	pidfd = peer_open(fd, pid);
	if (pidfd < 0)
		return pidfd == -ESRCH || (supposed && (pidfd == -EMFILE || pidfd == -ENFILE));
	ended = pidfd_has_ended(pidfd);
	close(pidfd);
	return ended;
}

/* Whether the socket's process is dead or is about to be; `supposed` as above. */
static bool peer_is_exiting(int fd, bool supposed)
{
	pid_t pid = peer_pid(fd);

	/* In this order: /proc shows it no more once it is dead. */
	return (pid > 0 && process_is_exiting(pid)) || peer_has_ended(fd, supposed);
}

/* ---- the processes that a thread knows ---- */

/* Whether proc_pid_statm(5) says that a process has memory: it is taken before the sockets close. */
static bool statm_is_alive(int file)
{
	char size[2];

	return pread(file, size, sizeof(size), 0) == sizeof(size) && size[0] != '0';
}

static bool known_is_alive(const struct vsp_peer *peer)
{
	return peer->is_pidfd ? !pidfd_has_ended(peer->fd) : statm_is_alive(peer->fd);
}

/* Return the process's /proc/PID/statm, the caller's to close; -1 where /proc hides it. */
static int statm_open(pid_t pid, int pidfd)
{
	char path[32];
	int file;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	/* The number was the process's when the file was opened, as it has not ended since. */
	if (file >= 0 && statm_is_alive(file) && !pidfd_has_ended(pidfd))
		return file;
	if (file >= 0)
		close(file);
	return -1;
}

/* Know the process behind a socket in an unused place.  Whether that was possible. */
static bool known_replace(struct vsp_peer *peer, int fd, pid_t pid, const unsigned char *address)
{
	int pidfd = peer_open(fd, pid);
	int file;

	if (pidfd < 0)
		return false;
	if (peer->pid)
		close(peer->fd);
	file = statm_open(pid, pidfd);
	if (file >= 0)
		close(pidfd);
	peer->pid = pid;
	peer->is_pidfd = file < 0;
	peer->fd = file < 0 ? pidfd : file;
	memcpy(peer->address, address, sizeof(peer->address));
	return true;
}

enum vsp_vmm vsp_peers_meet(struct vsp_peers *peers, int fd, const unsigned char *address)
{
	pid_t pid = peer_pid(fd);
	unsigned place = (unsigned)pid % PEERS;
	struct vsp_peer *peer = &peers->places[place];
	bool known = pid > 0 && peer->pid == pid &&
		     memcmp(peer->address, address, sizeof(peer->address)) == 0 &&
		     known_is_alive(peer);

	if (!known && peer_has_ended(fd, false))
		return VSP_NO_VMM;
	/* Without a number it is of a namespace that this process does not see. */
	if (!known && (pid <= 0 || peer->uses || !known_replace(peer, fd, pid, address)))
		return VSP_ASKED;
	peer->uses++;
	return (enum vsp_vmm)(VSP_KNOWN + place);
}

bool vsp_peers_is_exiting(const struct vsp_peers *peers, enum vsp_vmm vmm, int fd)
{
	if (vmm >= VSP_KNOWN && known_is_alive(&peers->places[vmm - VSP_KNOWN]))
		return false;
	/* The process that is known no longer lives: only whether it is the socket's is left to ask. */
	return vmm != VSP_NO_VMM && peer_is_exiting(fd, vmm >= VSP_KNOWN);
}

void vsp_peers_forget(struct vsp_peers *peers, enum vsp_vmm vmm)
{
	if (vmm >= VSP_KNOWN)
		peers->places[vmm - VSP_KNOWN].uses--;
}

void vsp_peers_close(struct vsp_peers *peers)
{
	for (int i = 0; i < PEERS; i++)
		if (peers->places[i].pid)
			close(peers->places[i].fd);
}
