/*
 * The client: groups of connections that ask and are answered, as fast as they can.
 *
 *     load run TARGET [--seconds S] [--wait] [--greet HEX:BYTES...] GROUP...
 *
 * A group is `connections=64,up=64,down=64`, and may add
 *     requests=N    close after N requests, and connect again
 *     flight=N      N connections at once have a request under way, all in turn; 0 is none
 *     half_close    half-close after each request, and expect the answer
 * Connections that stay are opened, and have made a request, before the time starts.  Requests
 * that began in time are finished, and the time includes them.
 *
 * With --wait it prints `ready` and waits for a line before the time starts, and keeps its
 * connections open after the result until its input ends.  With --greet each connection begins with
 * these bytes, and waits for their answer of so many (greeting.c).
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum {
	OPENING = 64, /* connections that are opened at once */
	SMALL = 64,   /* bytes of the request that opens, and of its answer */
	GROUPS = 8,
	GREETINGS = 4,
};

enum state {
	IDLE,
	GREETING,
	ASKING,
	ANSWERED,
};

struct group {
	struct client *client;
	uint32_t connections, up, down, requests, flight;
	bool half_close;
	struct link **queue; /* links whose turn is next; a ring */
	uint32_t queue_head, queue_size;
	uint64_t finished;
	struct latency *latency;
};

struct link {
	struct group *group;
	int fd; /* or -1 */
	enum state state;
	uint32_t events;
	uint32_t left; /* requests before it closes */
	int greeted;   /* greetings sent */
	uint32_t unread; /* bytes of the last one's answer */
	struct head asked;
	struct message message;
	uint64_t began;
};

struct client {
	const char *target;
	int set;
	uint64_t deadline; /* no request begins after it */
	bool opening;
	uint32_t in_flight;
	uint32_t seed;
	struct group groups[GROUPS];
	int group_number;
	struct greeting greetings[GREETINGS];
	int greeting_number;
};

static void link_watch(struct link *link, uint32_t events)
{
	if (link->events == events)
		return;
	link->events = events;
	poll_change(link->group->client->set, link->fd, events, link);
}

static void link_connect(struct link *link)
{
	struct client *client = link->group->client;

	link->fd = address_connect(client->target);
	link->events = EPOLLIN;
	link->left = link->group->requests;
	link->greeted = 0;
	link->unread = 0;
	poll_add(client->set, link->fd, EPOLLIN, link);
}

static void link_ask(struct link *link)
{
	enum outcome outcome = message_send(link->fd, &link->message);

	if (outcome == ENDED)
		fail("lost: the connection ended after %u of a request's %u bytes: %s",
		     link->message.done, link->asked.length, strerror(errno));
	link_watch(link, outcome == WHOLE ? EPOLLIN : EPOLLOUT);
	if (outcome != WHOLE)
		return;
	if (link->asked.flags & ANSWER_AFTER_END)
		shutdown(link->fd, SHUT_WR);
	link->state = ANSWERED;
	link->message = (struct message){0};
}

/* Send the greetings, each after the answer to the one before; then ask. */
static void link_greet(struct link *link)
{
	struct client *client = link->group->client;
	enum outcome outcome;

	link->state = GREETING;
	while ((outcome = greeting_receive(link->fd, &link->unread)) == WHOLE) {
		if (link->greeted == client->greeting_number) {
			link->state = ASKING;
			link_ask(link);
			return;
		}
		greeting_send(&client->greetings[link->greeted], link->fd);
		link->unread = client->greetings[link->greeted++].answer;
	}
	if (outcome == ENDED)
		fail("lost: the connection ended before greeting %d was answered", link->greeted);
}

static void link_begin(struct link *link)
{
	struct group *group = link->group;
	struct client *client = group->client;

	client->in_flight++;
	link->began = now_ns();
	if (link->fd < 0)
		link_connect(link);
	client->seed += 2;
	link->asked = (struct head){
		.length = client->opening ? SMALL : group->up,
		.answer = client->opening ? SMALL : group->down,
		.seed = client->seed,
		.flags = group->half_close ? ANSWER_AFTER_END : 0,
	};
	link->message = (struct message){.head = link->asked};
	link_greet(link);
}

static void group_push(struct group *group, struct link *link)
{
	uint32_t end = (group->queue_head + group->queue_size++) % group->connections;

	group->queue[end] = link;
}

static struct link *group_pop(struct group *group)
{
	struct link *link = group->queue[group->queue_head];

	group->queue_head = (group->queue_head + 1) % group->connections;
	group->queue_size--;
	return link;
}

/* While opening, each link has one turn; afterwards until the time is over. */
static void group_next(struct group *group)
{
	struct client *client = group->client;
	struct link *first = group->queue[group->queue_head];

	if (group->queue_size == 0)
		return;
	if (client->opening ? first->fd < 0 : now_ns() < client->deadline)
		link_begin(group_pop(group));
}

static void link_end(struct link *link)
{
	struct group *group = link->group;

	link->state = IDLE;
	group->client->in_flight--;
	if (!group->client->opening) {
		group->finished++;
		latency_add(group->latency, now_ns() - link->began);
		if (group->requests > 0 && --link->left == 0) {
			close(link->fd);
			link->fd = -1;
		}
	}
	group_push(group, link);
	group_next(group);
}

static void link_answered(struct link *link)
{
	enum outcome outcome = message_receive(link->fd, &link->message);

	if (outcome == ENDED)
		fail("lost: the connection ended after %u of an answer's %u bytes",
		     link->message.done, link->asked.answer);
	if (outcome == AGAIN)
		return;
	if (link->message.head.length != link->asked.answer ||
	    link->message.head.seed != link->asked.seed + 1)
		fail("the answer of another request came");
	link_end(link);
}

static void link_go(struct link *link)
{
	if (link->state == GREETING)
		link_greet(link);
	else if (link->state == ASKING)
		link_ask(link);
	else if (link->state == ANSWERED)
		link_answered(link);
	else
		fail("lost: a connection ended, or had bytes, while nothing was asked");
}

/* Return how long to wait for an event, in milliseconds. */
static int patience(const struct client *client)
{
	uint64_t now = now_ns();

	if (client->in_flight > 0)
		return STALLED_MS;
	return client->deadline > now ? (int)((client->deadline - now) / 1000000) + 1 : 0;
}

/* Run until the time is over and every request is answered. */
static void client_turn(struct client *client)
{
	struct epoll_event events[EVENTS];

	while (client->in_flight > 0 || now_ns() < client->deadline) {
		int number = epoll_wait(client->set, events, EVENTS, patience(client));

		if (number == 0 && client->in_flight > 0)
			fail("lost: %u requests have no answer", client->in_flight);
		for (int i = 0; i < number; i++)
			link_go(events[i].data.ptr);
	}
}

static void client_open(struct client *client)
{
	client->opening = true;
	for (int i = 0; i < client->group_number; i++)
		for (int n = 0; n < OPENING && client->groups[i].requests == 0; n++)
			group_next(&client->groups[i]);
	client_turn(client);
	client->opening = false;
}

static double client_measure(struct client *client, double seconds)
{
	uint64_t start = now_ns();

	client->deadline = start + (uint64_t)(seconds * 1e9);
	for (int i = 0; i < client->group_number; i++) {
		struct group *group = &client->groups[i];

		for (uint32_t n = 0; n < group->flight && group->queue_size > 0; n++)
			link_begin(group_pop(group));
	}
	client_turn(client);
	return (double)(now_ns() - start) / 1e9;
}

static void print_result(const struct client *client, double seconds)
{
	printf("{\"seconds\": %.6f, \"groups\": [", seconds);
	for (int i = 0; i < client->group_number; i++) {
		const struct group *group = &client->groups[i];

		printf("%s{\"requests\": %lu, \"up\": %lu, \"down\": %lu, ", i > 0 ? ", " : "",
		       group->finished, group->finished * group->up, group->finished * group->down);
		latency_print(group->latency);
		putchar('}');
	}
	puts("]}");
	fflush(stdout);
}

static void group_make_links(struct group *group)
{
	struct link *links = calloc(group->connections, sizeof(*links));

	group->latency = latency_new();
	group->queue = calloc(group->connections, sizeof(struct link *));
	if (links == NULL || group->queue == NULL)
		fail("out of memory");
	for (uint32_t i = 0; i < group->connections; i++) {
		links[i] = (struct link){.group = group, .fd = -1};
		group_push(group, &links[i]);
	}
}

static uint32_t number_of(const char *text, uint32_t least)
{
	char *end = NULL;
	unsigned long number = text == NULL ? 0 : strtoul(text, &end, 10);

	if (end == NULL || *end != '\0' || number < least || number > UINT32_MAX)
		fail("%s: want a number from %u on", text == NULL ? "nothing" : text, least);
	return (uint32_t)number;
}

static void group_parse(struct group *group, char *text)
{
	char *const names[] = {"connections", "up", "down", "requests", "flight", "half_close", NULL};
	uint32_t *const fields[] = {
		&group->connections, &group->up, &group->down, &group->requests, &group->flight};
	const uint32_t least[] = {1, sizeof(struct head), sizeof(struct head), 0, 0};
	char *value;

	group->connections = 1;
	group->up = group->down = SMALL;
	group->flight = UINT32_MAX;
	while (*text != '\0') {
		char *word = text;
		int name = getsubopt(&text, names, &value);

		if (name < 0)
			fail("%s: no such property of a group", word);
		if (name < 5) {
			*fields[name] = number_of(value, least[name]);
		} else {
			group->half_close = true;
			group->requests = 1;
		}
	}
}

static void wait_for_line(bool wanted)
{
	char line[16];

	if (wanted && fgets(line, sizeof(line), stdin) == NULL)
		exit(0); /* the parent has ended */
}

void run(const char *target, int argc, char **argv)
{
	struct client client = {.target = target, .set = poll_make()};
	double seconds = 1;
	bool wait = false;

	for (int i = 0; i < argc; i++) {
		if (strcmp(argv[i], "--wait") == 0) {
			wait = true;
		} else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
			seconds = strtod(argv[++i], NULL);
		} else if (strcmp(argv[i], "--greet") == 0 && i + 1 < argc) {
			if (client.greeting_number == GREETINGS)
				fail("at most %d greetings", GREETINGS);
			greeting_parse(&client.greetings[client.greeting_number++], argv[++i]);
		} else {
			struct group *group = &client.groups[client.group_number++];

			if (client.group_number > GROUPS)
				fail("at most %d groups", GROUPS);
			group->client = &client;
			group_parse(group, argv[i]);
			group_make_links(group);
		}
	}
	client_open(&client);
	if (wait) {
		puts("ready");
		fflush(stdout);
	}
	wait_for_line(wait);
	print_result(&client, client_measure(&client, seconds));
	wait_for_line(wait);
}
