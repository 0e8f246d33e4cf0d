/* Greetings: the request to a proxy that a client sends before it talks to its target. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "load.h"

/* Parse HEX:N, bytes and the size of their answer, or HEX:head, where it ends by an empty line. */
void greeting_parse(struct greeting *greeting, const char *text)
{
	const char *colon = strchr(text, ':');
	unsigned int byte;

	if (colon == NULL || (size_t)(colon - text) > 2 * sizeof(greeting->data))
		fail("%s: want HEX:BYTES", text);
	for (; text < colon && sscanf(text, "%2x", &byte) == 1; text += 2)
		greeting->data[greeting->size++] = (unsigned char)byte;
	if (strcmp(colon, ":head") == 0)
		greeting->answer = WHOLE_HEAD;
	else
		greeting->answer = (uint32_t)strtoul(colon + 1, NULL, 10);
}

/* A new connection's buffer has room for all of it. */
void greeting_send(const struct greeting *greeting, int fd)
{
	if (send(fd, greeting->data, greeting->size, MSG_NOSIGNAL) != greeting->size)
		fail("lost: a greeting was not taken: %s", strerror(errno));
}

/* Read an answer, WHOLE at its end. *unread is greeting.answer at first. */
enum outcome greeting_receive(int fd, uint32_t *unread)
{
	char answer[1024];

	while (*unread > 0) {
		size_t room = *unread < sizeof(answer) ? *unread : sizeof(answer);
		ssize_t size = recv(fd, answer, room, MSG_DONTWAIT);

		if (size < 0 && errno == EAGAIN)
			return AGAIN;
		if (size <= 0)
			return ENDED;
		if (*unread != WHOLE_HEAD)
			*unread -= (uint32_t)size;
		else if (size >= 4 && memcmp(answer + size - 4, "\r\n\r\n", 4) == 0)
			*unread = 0; /* one read has all: a proxy sends its head at once */
	}
	return WHOLE;
}
