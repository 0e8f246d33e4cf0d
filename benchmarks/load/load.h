/*
 * What the files of the load program share.
 *
 * Client and server talk in messages: a head of 16 bytes, then bytes of a known pattern.  A
 * request says how long it is and how long its answer is to be; the server answers once it
 * has the whole request.  Both compare every byte with the pattern, so whatever a proxy
 * loses, doubles or mixes up ends the program with status 1.
 */

#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	SLICE = 256 * 1024, /* bytes at most in one send or recv */
	EVENTS = 256,       /* taken by one epoll_wait */
	STALLED_MS = 20000, /* without an event for this long, bytes are lost */
};

enum outcome {
	AGAIN, /* wait for the next event */
	WHOLE,
	ENDED, /* the peer closed or reset the connection */
};

enum {
	ANSWER_AFTER_END = 1, /* flag: answer once the client has half-closed */
};

struct head {
	uint32_t length; /* of this message, head included */
	uint32_t answer; /* of the message that answers it */
	uint32_t seed;   /* where in the pattern the payload begins; an answer's is one more */
	uint32_t flags;
};

struct message {
	struct head head;
	uint32_t done; /* bytes sent or received */
};

/* message.c */
void pattern_make(void);
enum outcome message_send(int fd, struct message *message);
enum outcome message_receive(int fd, struct message *message);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* address.c: tcp:HOST:PORT, unix:PATH, mux:PATH, vsock:CID:PORT */
int address_listen(const char *text);
int address_connect(const char *text);
bool address_is_mux(const char *text);

/* poll.c */
int poll_make(void);
void poll_add(int set, int fd, uint32_t events, void *data);
void poll_change(int set, int fd, uint32_t events, void *data);
uint64_t now_ns(void);

/* greeting.c: what a client sends a proxy before its first request, and how it is answered */
struct greeting {
	unsigned char data[4096];
	uint32_t size;
	uint32_t answer; /* bytes; WHOLE_HEAD: up to an empty line */
};
enum { WHOLE_HEAD = UINT16_MAX };
void greeting_parse(struct greeting *greeting, const char *text);
void greeting_send(const struct greeting *greeting, int fd);
enum outcome greeting_receive(int fd, uint32_t *unread);

/* latency.c: a histogram with a resolution of 1 %. */
struct latency;
struct latency *latency_new(void);
void latency_add(struct latency *latency, uint64_t ns);
void latency_print(const struct latency *latency);

/* The commands. */
_Noreturn void serve(const char *listen, uint32_t skipped);
_Noreturn void relay(const char *listen, const char *target);
void run(const char *target, int argc, char **argv);

#endif
