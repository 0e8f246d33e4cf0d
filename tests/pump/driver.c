/*
 * Drives the native pump from C, for the thread, address and undefined-behaviour sanitizers:
 * an interpreter built without them hides most accesses.
 *
 * One thread calls the pump, as pump.h requires; every outer end of a relay has a thread with
 * blocking sockets.  Exits with 0 if every relay ended as its scenario says and no descriptor is
 * left over; else aborts with the line.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "bandwidth.h"
#include "pump.h"

/* The linker gives these the pump's calls (--wrap), so that the kernel can fail. */
static _Atomic int refuse_splice; /* out of a pipe, as a security module may: EPERM */
static _Atomic int refuse_watch;  /* fs.epoll.max_user_watches is reached: ENOSPC */
static _Atomic int64_t ahead_us;  /* of the pump's clock, before the real one */
static pthread_mutex_t paused = PTHREAD_MUTEX_INITIALIZER; /* held: no pump thread goes on */
static _Atomic int hold_place; /* 1: the next thread without a client holds on; 2: it does */
static _Thread_local int reset_in_reap = -1; /* a client of `reaped`, which resets meanwhile */
static struct vsp_pump *reaped;

ssize_t __real_splice(int in, loff_t *in_offset, int out, loff_t *out_offset, size_t size,
		      unsigned flags);
ssize_t __wrap_splice(int in, loff_t *in_offset, int out, loff_t *out_offset, size_t size,
		      unsigned flags);
int __real_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int __real_epoll_wait(int epoll, struct epoll_event *events, int room, int timeout);
int __wrap_epoll_wait(int epoll, struct epoll_event *events, int room, int timeout);
uint64_t __real_vsp_relay_upstream(const struct vsp_relay *relay);
uint64_t __wrap_vsp_relay_upstream(const struct vsp_relay *relay);
struct vsp_route;
void __real_vsp_route_give(struct vsp_route *route);
void __wrap_vsp_route_give(struct vsp_route *route);
int64_t __real_vsp_clock_us(void);
int64_t __wrap_vsp_clock_us(void);
size_t __real_vsp_throttle_take(struct vsp_throttle *throttle, size_t most, uint64_t now_ms);
size_t __wrap_vsp_throttle_take(struct vsp_throttle *throttle, size_t most, uint64_t now_ms);

enum {
	LONG_READ = 32 * 1024, /* bytes, as in move.c */
	STREAK = 4,            /* such reads in a row, behind which a stream is spliced */
};

ssize_t __wrap_splice(int in, loff_t *in_offset, int out, loff_t *out_offset, size_t size,
		      unsigned flags)
{
	int type;
	socklen_t room = sizeof(type);

	if (refuse_splice && getsockopt(out, SOL_SOCKET, SO_TYPE, &type, &room) == 0) {
		refuse_splice++;
		errno = EPERM;
		return -1;
	}
	return __real_splice(in, in_offset, out, out_offset, size, flags);
}

int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	if (refuse_watch && operation == EPOLL_CTL_ADD) {
		errno = ENOSPC;
		return -1;
	}
	return __real_epoll_ctl(epoll, operation, fd, event);
}

int __wrap_epoll_wait(int epoll, struct epoll_event *events, int room, int timeout)
{
	int count = __real_epoll_wait(epoll, events, room, timeout);

	pthread_mutex_lock(&paused);
	pthread_mutex_unlock(&paused);
	return count;
}

int64_t __wrap_vsp_clock_us(void)
{
	return __real_vsp_clock_us() + ahead_us;
}

/* A stream to be spliced is read in the shortest reads that count as long. */
size_t __wrap_vsp_throttle_take(struct vsp_throttle *throttle, size_t most, uint64_t now_ms)
{
	if (refuse_splice && most > LONG_READ)
		most = LONG_READ;
	return __real_vsp_throttle_take(throttle, most, now_ms);
}

enum {
	THREADS = 3,
	AT_ONCE = 48,
	ROUNDS = 12,
	SIZE = 700 * 1000, /* bytes one way: more than the buffers of all sockets hold */
	LONG_MS = 60 * 1000,
	AFTER_PAUSE = 300, /* relays: more than the events of a turn of a thread */
};

enum scenario {
	ANSWER_AFTER_EOF,
	BOTH_WAYS,
	CANCELLED,
	CLIENT_RESETS,
	IDLE,
	TARGET_FINISHES_AND_RESETS,
	TARGET_LEAVES,
	TARGET_RESETS,
	SCENARIOS,
};

struct ends {
	enum scenario scenario;
	int client;
	int target;
	pthread_t client_thread;
	pthread_t target_thread;
	struct vsp_relay *relay;
	int ended;
};

#define CHECK(condition)                                                                  \
	do {                                                                              \
		if (!(condition)) {                                                       \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
			abort();                                                          \
		}                                                                         \
	} while (0)

static void tcp_pair(int *ret_near, int *ret_far)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(listener >= 0);
	CHECK(bind(listener, (struct sockaddr *)&address, size) == 0);
	CHECK(listen(listener, 1) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
	*ret_near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(connect(*ret_near, (struct sockaddr *)&address, size) == 0);
	*ret_far = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	CHECK(*ret_far >= 0);
	close(listener);
}

static void unix_pair(int *ret_near, int *ret_far)
{
	int pair[2];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	*ret_near = pair[0];
	*ret_far = pair[1];
}

static char pattern(size_t place)
{
	return (char)(place * 31 + (place >> 11));
}

static char pattern_bytes[SIZE]; /* filled before any thread begins */

/* Send SIZE bytes, as fast as they are taken; return whether all were sent. */
static int send_pattern(int fd)
{
	size_t sent = 0;

	while (sent < SIZE) {
		ssize_t count = send(fd, pattern_bytes + sent, SIZE - sent, MSG_NOSIGNAL);

		if (count <= 0)
			return 0;
		sent += (size_t)count;
	}
	return 1;
}

/* Read to the end and check each byte; return how many there were. */
static size_t read_pattern(int fd)
{
	char data[8192];
	size_t place = 0;
	ssize_t count;

	while ((count = recv(fd, data, sizeof(data), 0)) > 0)
		for (ssize_t i = 0; i < count; i++, place++)
			CHECK(data[i] == pattern(place % SIZE));
	return place;
}

static void reset_and_close(int fd)
{
	const struct linger at_once = {.l_onoff = 1};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
}

/* Wait until the other side's kernel has every byte that was sent, and the FIN. */
static void delivered(int fd)
{
	int queued = 1;

	while (queued > 0) {
		CHECK(ioctl(fd, SIOCOUTQ, &queued) == 0);
		sched_yield();
	}
}

static void *client_main(void *argument)
{
	struct ends *ends = argument;
	int fd = ends->client;

	switch (ends->scenario) {
	case ANSWER_AFTER_EOF:
		CHECK(send_pattern(fd));
		shutdown(fd, SHUT_WR);
		CHECK(read_pattern(fd) == SIZE);
		break;
	case CLIENT_RESETS:
		send_pattern(fd);
		reset_and_close(fd);
		return NULL;
	case BOTH_WAYS:
		CHECK(send_pattern(fd));
		shutdown(fd, SHUT_WR);
		read_pattern(fd);
		break;
	case TARGET_FINISHES_AND_RESETS:
	case TARGET_RESETS:
		CHECK(send(fd, "unread", 6, MSG_NOSIGNAL) == 6);
		CHECK(read_pattern(fd) == SIZE);
		break;
	case CANCELLED:
	case TARGET_LEAVES:
		while (send_pattern(fd))
			;
		break;
	default:
		read_pattern(fd);
	}
	close(fd);
	return NULL;
}

static void *target_main(void *argument)
{
	struct ends *ends = argument;
	int fd = ends->target;

	switch (ends->scenario) {
	case ANSWER_AFTER_EOF:
		CHECK(read_pattern(fd) == SIZE);
		CHECK(send_pattern(fd));
		break;
	case BOTH_WAYS: {
		pthread_t reader;
		void *count;

		CHECK(pthread_create(&reader, NULL, (void *(*)(void *))(void (*)(void))read_pattern,
				     (void *)(intptr_t)fd) == 0);
		CHECK(send_pattern(fd));
		shutdown(fd, SHUT_WR);
		CHECK(pthread_join(reader, &count) == 0);
		CHECK((size_t)count == SIZE);
		break;
	}
	case TARGET_FINISHES_AND_RESETS:
		CHECK(send_pattern(fd));
		shutdown(fd, SHUT_WR);
		delivered(fd);
		break; /* its close resets, if the client's bytes are here by now */
	case TARGET_RESETS:
		CHECK(send_pattern(fd));
		delivered(fd);
		reset_and_close(fd);
		return NULL;
	case TARGET_LEAVES: {
		char some[1000];

		recv(fd, some, sizeof(some), 0);
		break;
	}
	default:
		read_pattern(fd);
	}
	close(fd);
	return NULL;
}

static void ends_start(struct vsp_pump *pump, struct vsp_bandwidth *shared, struct ends *ends,
		       unsigned number)
{
	const struct vsp_policy policy = {
		.idle_ms = number % SCENARIOS == IDLE ? 20 : LONG_MS,
		.half_close_ms = LONG_MS,
		.rate = number % 5 == 0 ? (uint64_t)SIZE * 20 : 0,
		.upstream_shared = number % 2 ? shared : NULL,
		.downstream_shared = number % 3 ? shared : NULL,
		.hold_ms = number % 4 == 0 ? 20 : 0,
		.linger_ms = 1000,
		.vmm = number % 2,
	};
	int client_side;
	int target_side;

	*ends = (struct ends){.scenario = number % SCENARIOS};
	tcp_pair(&ends->client, &client_side);
	(number / SCENARIOS % 2 ? tcp_pair : unix_pair)(&target_side, &ends->target);
	CHECK(vsp_pump_add(pump, number, client_side, target_side, &policy, &ends->relay) == 0);
	CHECK(pthread_create(&ends->client_thread, NULL, client_main, ends) == 0);
	CHECK(pthread_create(&ends->target_thread, NULL, target_main, ends) == 0);
}

static void end_check(const struct vsp_news *end, const struct ends *ends)
{
	switch (ends->scenario) {
	case ANSWER_AFTER_EOF:
	case BOTH_WAYS:
		CHECK(end->reason == VSP_FINISHED);
		CHECK(end->upstream_bytes == SIZE && end->downstream_bytes == SIZE);
		break;
	case CANCELLED:
		CHECK(end->reason == VSP_CANCELLED);
		break;
	case CLIENT_RESETS:
		CHECK(end->reason == VSP_CLIENT_RESET);
		break;
	case IDLE:
		CHECK(end->reason == VSP_IDLE_TIMEOUT);
		break;
	case TARGET_FINISHES_AND_RESETS:
	case TARGET_RESETS:
		CHECK(end->downstream_bytes == SIZE);
		break;
	default:
		CHECK(end->reason == VSP_TARGET_RESET);
	}
}

static void round_run(struct vsp_pump *pump, unsigned round)
{
	struct vsp_bandwidth *shared = vsp_bandwidth_new((uint64_t)SIZE * AT_ONCE * 10);
	struct ends ends[AT_ONCE];
	struct vsp_news reaped[5]; /* fewer than there are, so that reaping takes several calls */
	unsigned left = AT_ONCE;

	for (unsigned i = 0; i < AT_ONCE; i++)
		ends_start(pump, shared, &ends[i], i);
	vsp_bandwidth_unref(shared); /* the relays have their own references */
	for (unsigned i = 0; i < AT_ONCE; i++)
		if (ends[i].scenario == CANCELLED && (i + round) % 3)
			vsp_relay_cancel(ends[i].relay);
	vsp_pump_ask(pump);
	while (left > 0) {
		struct pollfd done = {.fd = vsp_pump_fd(pump), .events = POLLIN};
		int count;

		CHECK(poll(&done, 1, LONG_MS) == 1);
		for (unsigned i = 0; i < AT_ONCE; i++) {
			if (ends[i].ended)
				continue;
			CHECK(vsp_relay_upstream(ends[i].relay) <= INT64_MAX);
			if (ends[i].scenario == CANCELLED) /* for the first or the second time */
				vsp_relay_cancel(ends[i].relay);
		}
		while ((count = vsp_pump_reap(pump, reaped, 5)) > 0) {
			for (int i = 0; i < count; i++) {
				end_check(&reaped[i], &ends[reaped[i].tag]);
				ends[reaped[i].tag].ended = 1;
				vsp_relay_release(reaped[i].relay);
			}
			left -= (unsigned)count;
		}
	}
	while (vsp_pump_silent(pump))
		sched_yield();
	for (unsigned i = 0; i < AT_ONCE; i++) {
		pthread_join(ends[i].client_thread, NULL);
		pthread_join(ends[i].target_thread, NULL);
	}
}

/* Free the pump while relays run: their sockets must close. */
static void free_while_running(void)
{
	struct vsp_pump *pump;
	struct vsp_relay *relay;
	int client;
	int client_side;
	int target;
	int target_side;
	const struct vsp_policy policy = {.idle_ms = LONG_MS};

	CHECK(vsp_pump_new(THREADS, &pump) == 0);
	tcp_pair(&client, &client_side);
	unix_pair(&target, &target_side);
	CHECK(vsp_pump_add(pump, 0, client_side, target_side, &policy, &relay) == 0);
	CHECK(send(client, "x", 1, 0) == 1);
	vsp_pump_free(pump);
	CHECK(read_pattern(client) == 0);
	close(client);
	close(target);
}

static void relay_reap(struct vsp_pump *pump, struct vsp_news *ret_end)
{
	struct pollfd done = {.fd = vsp_pump_fd(pump), .events = POLLIN};

	CHECK(poll(&done, 1, LONG_MS) == 1);
	CHECK(vsp_pump_reap(pump, ret_end, 1) == 1);
	/* Until it is released it can be read, and cancelled for nothing. */
	CHECK(vsp_relay_upstream(ret_end->relay) == ret_end->upstream_bytes);
	vsp_relay_cancel(ret_end->relay);
	vsp_relay_release(ret_end->relay);
}

/* Wait until so many bytes lie in the socket's queue. */
static void queued(int fd, int bytes)
{
	int count = 0;

	while (count < bytes) {
		CHECK(ioctl(fd, FIONREAD, &count) == 0);
		sched_yield();
	}
}

/*
 * A stream whose pipe cannot be spliced into the target arrives whole, by copies.  Only a stream
 * with long reads is spliced, so these lie in the queue before the relay begins, and one more.
 */
static void stream_without_splice(struct vsp_pump *pump)
{
	const struct vsp_policy policy = {.idle_ms = LONG_MS, .linger_ms = 1000};
	const int queue = 200 * 1024; /* about the most that a process may ask for */
	const int before = refuse_splice;
	struct ends ends = {.scenario = ANSWER_AFTER_EOF};
	struct vsp_news end;
	int client_side;
	int target_side;

	tcp_pair(&ends.client, &client_side);
	tcp_pair(&target_side, &ends.target);
	CHECK(setsockopt(client_side, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue)) == 0);
	CHECK(pthread_create(&ends.client_thread, NULL, client_main, &ends) == 0);
	queued(client_side, (STREAK + 1) * LONG_READ);
	CHECK(vsp_pump_add(pump, 0, client_side, target_side, &policy, &ends.relay) == 0);
	CHECK(pthread_create(&ends.target_thread, NULL, target_main, &ends) == 0);
	relay_reap(pump, &end);
	end_check(&end, &ends);
	pthread_join(ends.client_thread, NULL);
	pthread_join(ends.target_thread, NULL);
	CHECK(refuse_splice > before);
}

static void streams_without_splice(void)
{
	struct vsp_pump *pump;

	CHECK(vsp_pump_new(1, &pump) == 0);
	refuse_splice = 1;
	for (int i = 0; i < 10; i++)
		stream_without_splice(pump);
	refuse_splice = 0;
	vsp_pump_free(pump);
}

/* A relay whose sockets cannot be watched ends for want of memory, and both ends by a reset. */
static void relay_without_watch(void)
{
	const struct vsp_policy policy = {.idle_ms = LONG_MS, .linger_ms = 1000};
	struct vsp_relay *relay;
	struct vsp_pump *pump;
	struct vsp_news end;
	char byte;
	int client;
	int client_side;
	int target;
	int target_side;

	CHECK(vsp_pump_new(1, &pump) == 0);
	tcp_pair(&client, &client_side);
	tcp_pair(&target_side, &target);
	refuse_watch = 1;
	CHECK(vsp_pump_add(pump, 0, client_side, target_side, &policy, &relay) == 0);
	relay_reap(pump, &end);
	refuse_watch = 0;
	CHECK(end.reason == VSP_NO_MEMORY);
	CHECK(recv(client, &byte, 1, 0) < 0 && errno == ECONNRESET);
	CHECK(recv(target, &byte, 1, 0) < 0 && errno == ECONNRESET);
	vsp_pump_free(pump);
	close(client);
	close(target);
}

/* Pause the pump's threads for a minute, as a stopped process is, while clients send `data` each. */
static void pause_while(const int *clients, int count, const char *data)
{
	pthread_mutex_lock(&paused);
	for (int i = 0; i < count; i++)
		CHECK(send(clients[i], data, strlen(data), 0) == (ssize_t)strlen(data));
	ahead_us += (int64_t)LONG_MS * 1000;
	pthread_mutex_unlock(&paused);
}

/*
 * Bytes sent before and in a pause arrive, up to a last `y`, though the idle time-out has passed
 * when the threads run again.
 */
static void bytes_of_a_pause_arrive(uint64_t rate, const char *first, const char *second)
{
	const struct vsp_policy policy = {.idle_ms = LONG_MS / 2, .rate = rate};
	struct vsp_relay *relays[AFTER_PAUSE];
	int clients[AFTER_PAUSE];
	int targets[AFTER_PAUSE];
	struct vsp_pump *pump;
	char byte;

	CHECK(vsp_pump_new(1, &pump) == 0);
	for (unsigned i = 0; i < AFTER_PAUSE; i++) {
		int client_side;
		int target_side;

		unix_pair(&clients[i], &client_side);
		unix_pair(&target_side, &targets[i]);
		CHECK(vsp_pump_add(pump, i, client_side, target_side, &policy, &relays[i]) == 0);
		CHECK(send(clients[i], first, strlen(first), 0) == (ssize_t)strlen(first));
		CHECK(recv(targets[i], &byte, 1, 0) == 1);
	}
	pause_while(clients, AFTER_PAUSE, second);
	for (int i = 0; i < AFTER_PAUSE; i++) {
		do
			CHECK(recv(targets[i], &byte, 1, 0) == 1);
		while (byte != 'y');
		close(clients[i]);
		close(targets[i]);
	}
	vsp_pump_free(pump);
}

/* ---- direct routes: the threads accept and dial ---- */

enum {
	DIRECT = 64,    /* clients of a round */
	PLACES = 20,    /* of them at a time, so that the server halts and is begun again */
	FAILING_EACH = 5, /* each such client belongs to the route whose target does not listen */
};

static void listen_at_loopback(int *ret_listener, struct sockaddr_in *ret_address)
{
	socklen_t size = sizeof(*ret_address);

	*ret_address = (struct sockaddr_in){.sin_family = AF_INET};
	ret_address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*ret_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(*ret_listener, (struct sockaddr *)ret_address, size) == 0);
	CHECK(listen(*ret_listener, 2 * DIRECT) == 0);
	CHECK(getsockname(*ret_listener, (struct sockaddr *)ret_address, &size) == 0);
}

/* A VMM of one port: answers each CONNECT by OK and the bytes that follow it, until told to end. */
static void *vmm_main(void *argument)
{
	int listener = (int)(intptr_t)argument;
	char line[64];
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		ssize_t size = recv(fd, line, sizeof(line), 0);
		const char *newline = size > 0 ? memchr(line, '\n', (size_t)size) : NULL;

		if (newline && send(fd, "OK 1234\nbanner", 14, MSG_NOSIGNAL) == 14) {
			shutdown(fd, SHUT_WR);
			while (recv(fd, line, sizeof(line), 0) > 0)
				;
		}
		close(fd);
	}
	return NULL;
}

struct front {
	int listener;
	struct sockaddr_in address;
	struct vsp_server *server;
};

static void front_serve(struct vsp_pump *pump, struct front *front, uint32_t tag,
			const struct vsp_target *target, struct vsp_limit *own, struct vsp_limit *all)
{
	CHECK(vsp_pump_serve(pump, tag, tag, front->listener, target, own, all, &front->server) == 0);
}

static void *direct_client_main(void *argument)
{
	const struct front *front = argument;
	char data[64];
	size_t place = 0;
	ssize_t count;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	/* A client whose dial fails may be reset before its connect or send has returned. */
	if (connect(fd, (const struct sockaddr *)&front->address, sizeof(front->address)) == 0 &&
	    send(fd, "question", 8, MSG_NOSIGNAL) == 8 && shutdown(fd, SHUT_WR) == 0) {
		while ((count = recv(fd, data + place, sizeof(data) - place, 0)) > 0)
			place += (size_t)count;
		CHECK(count < 0 || (place == 6 && memcmp(data, "banner", 6) == 0));
	}
	close(fd);
	return NULL;
}

/* Every client is reported once, whatever becomes of it, while servers halt, stop and begin. */
static void direct_round(bool tallied)
{
	struct vsp_target targets[2] = {{.connect_ms = LONG_MS, .handshake_ms = LONG_MS, .answers = true},
				  {.connect_ms = LONG_MS}};
	struct vsp_tally tally;
	struct sockaddr_un vmm = {.sun_family = AF_UNIX};
	struct vsp_limit *all = vsp_limit_new();
	struct vsp_limit *own[2] = {vsp_limit_new(), vsp_limit_new()};
	struct front fronts[2];
	pthread_t clients[DIRECT];
	pthread_t vmm_thread;
	struct vsp_pump *pump;
	struct vsp_news news[7];
	unsigned opened = 0, connected = 0, ended = 0, failed = 0, upstream = 0, turn = 0;
	socklen_t size = sizeof(vmm);
	int vmm_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int error;

	CHECK(vsp_pump_new(THREADS, &pump) == 0);
	CHECK(bind(vmm_listener, (struct sockaddr *)&vmm, sizeof(sa_family_t)) == 0);
	CHECK(listen(vmm_listener, 4) == 0); /* few: a dial finds its backlog full */
	CHECK(getsockname(vmm_listener, (struct sockaddr *)&vmm, &size) == 0);
	memcpy(targets[0].address, &vmm, size);
	targets[0].address_size = size;
	memcpy(targets[0].request, "CONNECT 5\n", 11);
	vmm.sun_path[1] ^= 1; /* nothing listens there */
	memcpy(targets[1].address, &vmm, size);
	targets[1].address_size = size;
	vsp_limit_set(all, PLACES);
	CHECK(pthread_create(&vmm_thread, NULL, vmm_main, (void *)(intptr_t)vmm_listener) == 0);
	for (unsigned i = 0; i < 2; i++) {
		targets[i].tallied = tallied;
		targets[i].dial_bounds_us[0] = INT64_MAX;
		targets[i].life_bounds_us[0] = 1000;
		targets[i].life_bounds_us[1] = INT64_MAX;
		vsp_limit_set(own[i], PLACES);
		listen_at_loopback(&fronts[i].listener, &fronts[i].address);
		fcntl(fronts[i].listener, F_SETFL, O_NONBLOCK);
		front_serve(pump, &fronts[i], i, &targets[i], own[i], all);
	}
	for (unsigned i = 0; i < DIRECT; i++)
		CHECK(pthread_create(&clients[i], NULL, direct_client_main,
				     &fronts[i % FAILING_EACH == 0]) == 0);
	while (ended < DIRECT) {
		struct pollfd done = {.fd = vsp_pump_fd(pump), .events = POLLIN};
		unsigned which = turn++ % 2;
		int64_t halted;
		int count;

		poll(&done, 1, 20);
		while ((count = vsp_pump_reap(pump, news, 7)) > 0) {
			for (int i = 0; i < count; i++) {
				opened += news[i].what & VSP_NEWS_OPENED ? 1 : 0;
				connected += news[i].what & VSP_NEWS_CONNECTED ? 1 : 0;
				if (!(news[i].what & VSP_NEWS_ENDED))
					continue;
				ended++;
				upstream += (unsigned)news[i].upstream_bytes;
				failed += news[i].reason == VSP_DIAL_FAILED ? 1 : 0;
				CHECK((news[i].route == 1) == (news[i].reason == VSP_DIAL_FAILED));
				CHECK(vsp_limit_unreported(all) > 0);
				vsp_relay_release(news[i].relay);
			}
		}
		while (vsp_pump_tally(pump, &tally)) {
			CHECK(tallied && tally.route == 0);
			CHECK(tally.reasons[VSP_FINISHED] == tally.ended);
			CHECK(tally.lives.counts[0] + tally.lives.counts[1] == tally.ended);
			CHECK(tally.dials.counts[0] == tally.ended && tally.connected_us);
			opened += (unsigned)tally.ended;
			connected += (unsigned)tally.ended;
			ended += (unsigned)tally.ended;
			upstream += (unsigned)tally.upstream_bytes;
		}
		while ((halted = vsp_pump_halted(pump, &error)) >= 0) {
			CHECK(error == 0);
			vsp_server_stop(fronts[halted].server);
			front_serve(pump, &fronts[halted], (uint32_t)halted, &targets[halted],
				    own[halted], all);
		}
		vsp_server_stop(fronts[which].server); /* as a reload does */
		front_serve(pump, &fronts[which], which, &targets[which], own[which], all);
	}
	for (unsigned i = 0; i < DIRECT; i++)
		pthread_join(clients[i], NULL);
	CHECK(opened == DIRECT && connected == DIRECT - failed);
	CHECK(failed == (DIRECT + FAILING_EACH - 1) / FAILING_EACH);
	CHECK(upstream == 8 * connected);
	shutdown(vmm_listener, SHUT_RDWR);
	pthread_join(vmm_thread, NULL);
	CHECK(vsp_limit_live(all) == 0 && vsp_limit_unreported(all) == 0);
	for (unsigned i = 0; i < 2; i++) {
		vsp_server_stop(fronts[i].server);
		CHECK(vsp_limit_live(own[i]) == 0 && vsp_limit_unreported(own[i]) == 0);
		vsp_limit_unref(own[i]);
		close(fronts[i].listener);
	}
	vsp_limit_unref(all);
	vsp_pump_free(pump);
	close(vmm_listener);
}

/* Return a blocking client of a front. */
static int front_connect(const struct front *front)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(connect(fd, (const struct sockaddr *)&front->address, sizeof(front->address)) == 0);
	return fd;
}

/* Return whether the pump's descriptor is readable within a time. */
static bool news_comes(const struct vsp_pump *pump, int within_ms)
{
	struct pollfd news = {.fd = vsp_pump_fd(pump), .events = POLLIN};

	return poll(&news, 1, within_ms) == 1;
}

/* The caller reads the bytes of each relay that it has taken from the news, which takes time. */
uint64_t __wrap_vsp_relay_upstream(const struct vsp_relay *relay)
{
	int client = reset_in_reap;

	reset_in_reap = -1;
	if (client >= 0) {
		reset_and_close(client);
		CHECK(news_comes(reaped, LONG_MS));
	}
	return __real_vsp_relay_upstream(relay);
}

/* A direct route to a target whose backlog is not accepted from. */
struct direct {
	struct vsp_pump *pump;
	struct vsp_limit *limit;
	struct front front;
	int target_listener;
	int64_t unreported; /* at the return of the stop */
	_Atomic int stopped;
};

static void direct_open(struct direct *direct, bool tallied)
{
	struct vsp_target served = {.connect_ms = LONG_MS, .tallied = tallied};
	struct sockaddr_un target = {.sun_family = AF_UNIX};
	socklen_t size = sizeof(target);

	direct->stopped = 0;
	direct->target_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(direct->target_listener, (struct sockaddr *)&target, sizeof(sa_family_t)) == 0);
	CHECK(listen(direct->target_listener, 4) == 0);
	CHECK(getsockname(direct->target_listener, (struct sockaddr *)&target, &size) == 0);
	memcpy(served.address, &target, size);
	served.address_size = size;
	direct->limit = vsp_limit_new();
	vsp_limit_set(direct->limit, PLACES);
	CHECK(vsp_pump_new(1, &direct->pump) == 0);
	listen_at_loopback(&direct->front.listener, &direct->front.address);
	fcntl(direct->front.listener, F_SETFL, O_NONBLOCK);
	front_serve(direct->pump, &direct->front, 0, &served, direct->limit, direct->limit);
}

static void direct_close(struct direct *direct)
{
	if (!direct->stopped)
		vsp_server_stop(direct->front.server);
	vsp_pump_free(direct->pump);
	vsp_limit_unref(direct->limit);
	close(direct->front.listener);
	close(direct->target_listener);
}

/* A connection that ends while its opening is reaped is reported by its tag, in the next batch. */
static void an_end_in_the_reap_of_its_opening(void)
{
	struct direct direct;
	struct vsp_news news[2];
	int client;

	direct_open(&direct, false);
	client = front_connect(&direct.front);
	CHECK(news_comes(direct.pump, LONG_MS));
	reaped = direct.pump;
	reset_in_reap = client;
	CHECK(vsp_pump_reap(direct.pump, news, 2) == 1);
	CHECK(news[0].what & VSP_NEWS_OPENED && !(news[0].what & VSP_NEWS_ENDED));
	vsp_relay_set_tag(news[0].relay, 7);
	do {
		CHECK(news_comes(direct.pump, LONG_MS));
		CHECK(vsp_pump_reap(direct.pump, news, 2) == 1);
		CHECK(news[0].tag == 7);
	} while (!(news[0].what & VSP_NEWS_ENDED));
	vsp_relay_release(news[0].relay);
	direct_close(&direct);
}

/* A thread that has found no client holds on before it gives the place for one back. */
void __wrap_vsp_route_give(struct vsp_route *route)
{
	if (hold_place) {
		hold_place = 2;
		while (hold_place)
			sched_yield();
	}
	__real_vsp_route_give(route);
}

static void *stop_main(void *argument)
{
	struct direct *direct = argument;

	vsp_server_stop(direct->front.server);
	direct->unreported = vsp_limit_unreported(direct->limit);
	direct->stopped = 1;
	return NULL;
}

/* Once a server is stopped, the places that are taken are those of its connections. */
static void a_stop_while_no_client_is_found(void)
{
	const struct timespec moment = {.tv_nsec = 1000 * 1000};
	struct direct direct;
	pthread_t stopping;
	int client;

	direct_open(&direct, false);
	hold_place = 1;
	client = front_connect(&direct.front);
	while (hold_place != 2)
		sched_yield();
	CHECK(pthread_create(&stopping, NULL, stop_main, &direct) == 0);
	for (int i = 0; i < 100 && !direct.stopped; i++)
		nanosleep(&moment, NULL); /* it is not to return meanwhile */
	hold_place = 0;
	pthread_join(stopping, NULL);
	CHECK(direct.unreported == 2); /* it is the limit of the route, and of all */
	close(client);
	direct_close(&direct);
}

/* News that comes between the caller's looks at the list and at the tallies wakes the caller. */
static void news_beside_a_tally_wakes(void)
{
	struct direct direct;
	struct vsp_tally tally;
	struct vsp_news news;
	int client;

	direct_open(&direct, true);
	reset_and_close(front_connect(&direct.front));
	CHECK(news_comes(direct.pump, LONG_MS));
	CHECK(vsp_pump_reap(direct.pump, &news, 1) == 0);
	client = front_connect(&direct.front);
	while (vsp_limit_live(direct.limit) == 0)
		sched_yield();
	vsp_pump_ask(direct.pump);
	while (vsp_pump_silent(direct.pump) > 0)
		sched_yield();
	CHECK(vsp_pump_tally(direct.pump, &tally) && tally.ended == 1);
	CHECK(news_comes(direct.pump, 0));
	CHECK(vsp_pump_reap(direct.pump, &news, 1) == 1 && news.what & VSP_NEWS_OPENED);
	direct_close(&direct);
	close(client);
}

static unsigned open_descriptors(void)
{
	DIR *folder = opendir("/proc/self/fd");
	unsigned count = 0;

	CHECK(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

/* Take until the direction has to wait, as a relay does that always has bytes. */
static uint64_t take_all(struct vsp_throttle *throttle, uint64_t now_ms)
{
	uint64_t taken = 0;
	size_t size;

	vsp_throttle_wake(throttle, now_ms);
	while ((size = vsp_throttle_take(throttle, 4096, now_ms)) > 0)
		taken += size;
	return taken;
}

/* Whether a number is within a fifth of another one. */
static bool is_about(uint64_t number, uint64_t wanted)
{
	return number >= wanted - wanted / 5 && number <= wanted + wanted / 5;
}

/*
 * Directions that come at any time, and always in one order, have equal shares of a bandwidth in
 * each second; one that wants less leaves the rest to the others, as one does that has ended.
 */
static void shares_of_a_bandwidth_are_equal(void)
{
	enum { RATE = 1000000, ALWAYS = 3, FIRST_MS = 1000 };
	struct vsp_bandwidth *shared = vsp_bandwidth_new(RATE);
	struct vsp_throttle *always[ALWAYS], *seldom;
	uint64_t now_ms = FIRST_MS;

	CHECK(shared && vsp_throttle_new(0, shared, &seldom) == 0);
	for (int i = 0; i < ALWAYS; i++)
		CHECK(vsp_throttle_new(0, shared, &always[i]) == 0);
	for (int second = 0; second < 6; second++) {
		uint64_t taken[ALWAYS] = {0}, little = 0;
		int those = second < 4 ? ALWAYS : ALWAYS - 1; /* the last one has ended */

		for (uint64_t end_ms = now_ms + 1000; now_ms < end_ms; now_ms++) {
			for (int i = 0; i < those; i++)
				if (now_ms >= FIRST_MS + 7 * (uint64_t)i)
					taken[i] += take_all(always[i], now_ms);
			if (now_ms % 50 == 0) {
				vsp_throttle_wake(seldom, now_ms);
				little += vsp_throttle_take(seldom, 100, now_ms);
			}
		}
		for (int i = 0; i < those; i++)
			CHECK(second == 0 || is_about(taken[i], RATE / (uint64_t)those));
		CHECK(little <= 2000);
	}
	for (int i = 0; i < ALWAYS; i++)
		vsp_throttle_free(always[i]);
	vsp_throttle_free(seldom);
	vsp_bandwidth_unref(shared);
}

int main(void)
{
	unsigned before = open_descriptors();
	struct rlimit descriptors;
	struct vsp_pump *pump;

	CHECK(getrlimit(RLIMIT_NOFILE, &descriptors) == 0);
	descriptors.rlim_cur = descriptors.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &descriptors) == 0);

	for (size_t i = 0; i < SIZE; i++)
		pattern_bytes[i] = pattern(i);
	CHECK(vsp_pump_new(THREADS, &pump) == 0);
	for (unsigned round = 0; round < ROUNDS; round++)
		round_run(pump, round);
	vsp_pump_free(pump);
	free_while_running();
	streams_without_splice();
	relay_without_watch();
	bytes_of_a_pause_arrive(0, "x", "y");
	bytes_of_a_pause_arrive(20, "xxxxxxxxxxxxxxxy", ""); /* they wait for bandwidth */
	for (unsigned round = 0; round < ROUNDS; round++)
		direct_round(round % 2);
	news_beside_a_tally_wakes();
	an_end_in_the_reap_of_its_opening();
	a_stop_while_no_client_is_found();
	shares_of_a_bandwidth_are_equal();
	CHECK(open_descriptors() == before);
	printf("%d relays ended as they should\n", ROUNDS * AT_ONCE);
	return 0;
}
