/* Messages and the pattern that they carry. */

#define _GNU_SOURCE

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "load.h"

enum {
	PERIOD = 65521, /* a prime: a shift by any buffer's size shows */
	HEAD = sizeof(struct head),
};

static unsigned char pattern[PERIOD + SLICE];
static unsigned char scratch[SLICE];

void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("load: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

void pattern_make(void)
{
	uint32_t state = 2463534242;

	for (size_t i = 0; i < PERIOD; i++) {
		state ^= state << 13;
		state ^= state >> 17;
		state ^= state << 5;
		pattern[i] = (unsigned char)state;
	}
	for (size_t i = PERIOD; i < sizeof(pattern); i++)
		pattern[i] = pattern[i - PERIOD];
}

/* Return the payload from a position of the message on; valid for SLICE bytes. */
static unsigned char *payload(const struct message *message, uint32_t done)
{
	return pattern + ((uint64_t)message->head.seed + done - HEAD) % PERIOD;
}

static size_t slice_of(size_t bytes)
{
	return bytes < SLICE ? bytes : SLICE;
}

/* Send once: the rest of the head and a slice of the payload. */
static ssize_t send_slice(int fd, struct message *message)
{
	uint32_t of_head = message->done < HEAD ? HEAD - message->done : 0;
	uint32_t start = message->done + of_head;
	struct iovec parts[2] = {
		{(char *)&message->head + HEAD - of_head, of_head},
		{payload(message, start), slice_of(message->head.length - start)},
	};
	struct msghdr call = {.msg_iov = parts, .msg_iovlen = 2};

	if (of_head == 0)
		return send(fd, parts[1].iov_base, parts[1].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
	return sendmsg(fd, &call, MSG_DONTWAIT | MSG_NOSIGNAL);
}

enum outcome message_send(int fd, struct message *message)
{
	ssize_t sent = send_slice(fd, message);

	if (sent < 0)
		return errno == EAGAIN ? AGAIN : ENDED;
	message->done += sent;
	return message->done == message->head.length ? WHOLE : AGAIN;
}

/* Receive into the message; fail at the first byte that differs from the pattern. */
static void message_take(struct message *message, const unsigned char *data, size_t size)
{
	size_t of_head = message->done < HEAD ? HEAD - message->done : 0;

	if (of_head > size)
		of_head = size;
	memcpy((char *)&message->head + message->done, data, of_head);
	message->done += of_head;
	size -= of_head;
	if (message->done < HEAD)
		return;
	if (message->head.length < HEAD || size > message->head.length - message->done)
		fail("more bytes came than were sent");
	if (memcmp(payload(message, message->done), data + of_head, size) != 0)
		fail("other bytes came than were sent, from byte %u on", message->done);
	message->done += size;
}

enum outcome message_receive(int fd, struct message *message)
{
	ssize_t size = recv(fd, scratch, sizeof(scratch), MSG_DONTWAIT);

	if (size < 0)
		return errno == EAGAIN ? AGAIN : ENDED;
	if (size == 0)
		return ENDED;
	message_take(message, scratch, size);
	return message->done >= HEAD && message->done == message->head.length ? WHOLE : AGAIN;
}
