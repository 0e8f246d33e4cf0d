/* The process at the other end of a Unix socket. */

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

bool vsp_peer_has_ended(int fd)
{
	struct pollfd end = {.events = POLLIN};
	pid_t pid = peer_pid(fd);
	bool ended;

	if (pid < 0)
		return false;
	end.fd = peer_open(fd, pid);
	if (end.fd < 0)
		return end.fd == -ESRCH;
	ended = poll(&end, 1, 0) > 0;
	close(end.fd);
	return ended;
}

bool vsp_peer_is_exiting(int fd)
{
	pid_t pid = peer_pid(fd);

	return vsp_peer_has_ended(fd) || (pid > 0 && process_is_exiting(pid));
}
