/* Addresses, and the sockets that listen on them and connect to them. */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "load.h"

enum {
	BACKLOG = 4096,
	SOURCES = 16, /* client addresses; each has some 28000 ports to connect from */
};

union address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_un un;
	struct sockaddr_vm vm;
};

/* Return the text after a scheme, or NULL. */
static const char *after(const char *text, const char *scheme)
{
	size_t length = strlen(scheme);

	return strncmp(text, scheme, length) == 0 ? text + length : NULL;
}

bool address_is_mux(const char *text)
{
	return after(text, "mux:") != NULL;
}

static socklen_t parse_tcp(const char *text, struct sockaddr_in *in)
{
	char host[INET_ADDRSTRLEN];
	unsigned int port;

	if (sscanf(text, "%15[0-9.]:%u", host, &port) != 2 || port > 65535 ||
	    inet_pton(AF_INET, host, &in->sin_addr) != 1)
		fail("tcp:%s: want tcp:IPV4:PORT", text);
	in->sin_family = AF_INET;
	in->sin_port = htons(port);
	return sizeof(*in);
}

static socklen_t parse_unix(const char *text, struct sockaddr_un *un)
{
	if (strlen(text) >= sizeof(un->sun_path))
		fail("unix:%s: the path is too long", text);
	un->sun_family = AF_UNIX;
	strcpy(un->sun_path, text);
	return sizeof(*un);
}

static socklen_t parse_vsock(const char *text, struct sockaddr_vm *vm)
{
	/* A machine's own vsock may lead to its hypervisor: see docs/testing.md. */
	if (getenv("VSOCKPROXY_TEST_KERNEL") == NULL)
		fail("vsock:%s: vsock is only for kernels that are booted for it", text);
	if (sscanf(text, "%u:%u", &vm->svm_cid, &vm->svm_port) != 2)
		fail("vsock:%s: want vsock:CID:PORT", text);
	vm->svm_family = AF_VSOCK;
	return sizeof(*vm);
}

static socklen_t parse(const char *text, union address *address)
{
	const char *rest;

	memset(address, 0, sizeof(*address));
	if ((rest = after(text, "tcp:")) != NULL)
		return parse_tcp(rest, &address->in);
	if ((rest = after(text, "unix:")) != NULL || (rest = after(text, "mux:")) != NULL)
		return parse_unix(rest, &address->un);
	if ((rest = after(text, "vsock:")) != NULL)
		return parse_vsock(rest, &address->vm);
	fail("%s: want tcp:, unix:, mux: or vsock:", text);
}

static int socket_of(const union address *address, int flags)
{
	const int one = 1;
	int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (fd < 0)
		fail("socket: %s", strerror(errno));
	if (address->any.sa_family == AF_INET)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* accept inherits it */
	return fd;
}

int address_listen(const char *text)
{
	const int one = 1;
	union address address;
	socklen_t size = parse(text, &address);
	int fd = socket_of(&address, SOCK_NONBLOCK);

	if (address.any.sa_family == AF_UNIX)
		unlink(address.un.sun_path);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, &address.any, size) < 0 || listen(fd, BACKLOG) < 0)
		fail("%s: %s", text, strerror(errno));
	return fd;
}

/* Bind to one of several loopback addresses, as one has too few ports. */
static void choose_source(int fd)
{
	static unsigned int turn;
	const int one = 1;
	struct sockaddr_in source = {.sin_family = AF_INET};

	source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 256 + turn++ % SOURCES);
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&source, sizeof(source)) < 0)
		fail("a source on the loopback: %s", strerror(errno));
}

/* Blocks until it is connected, which on one machine takes no longer than the call. */
int address_connect(const char *text)
{
	union address address;
	socklen_t size = parse(text, &address);
	int fd = socket_of(&address, 0);

	if (address.any.sa_family == AF_INET && ntohl(address.in.sin_addr.s_addr) >> 24 == 127)
		choose_source(fd);
	if (connect(fd, &address.any, size) < 0)
		fail("%s: connect: %s", text, strerror(errno));
	return fd;
}
