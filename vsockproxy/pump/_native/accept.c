/* accept(2): one client, or all that are queued. */

#define _GNU_SOURCE

#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

#include "accept.h"

/* Return the size of an address without the zeros that end an IPv4 one. */
static unsigned int address_size(const struct vsp_client *client, socklen_t size)
{
	const struct sockaddr *address = (const struct sockaddr *)client->address;

	if (address->sa_family == AF_INET)
		return offsetof(struct sockaddr_in, sin_zero);
	return size < sizeof(client->address) ? size : sizeof(client->address);
}

int vsp_accept_one(int listener, struct vsp_client *ret_client)
{
	socklen_t size = sizeof(ret_client->address);

	ret_client->fd = accept4(listener, (struct sockaddr *)ret_client->address, &size,
				 SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (ret_client->fd < 0)
		return -errno;
	ret_client->size = address_size(ret_client, size);
	return 0;
}

int vsp_accept(int listener, struct vsp_client *ret_clients, int room)
{
	int count = 0;

	while (count < room) {
		int error = vsp_accept_one(listener, &ret_clients[count]);

		/* An error after the first client is left to the next call, if it lasts. */
		if (error)
			return count > 0 ? count : error;
		count++;
	}
	return count;
}
