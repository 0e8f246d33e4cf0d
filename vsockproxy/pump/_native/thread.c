/* A pump thread: it sleeps in epoll_wait, and moves bytes while there are some to move. */

#define _GNU_SOURCE

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "closing.h"
#include "thread.h"
#include "turn.h"

enum {
	EVENTS = 256,    /* taken by one epoll_wait */
	SPARE_MS = 1000, /* until spare pipes that were not needed are closed */
};

enum rank {
	NEW, /* clients, and relays from the inbox */
	BYTES,
	ENDS,
};

/* ---- the inbox: written by the caller's thread ---- */

static void thread_wake(struct vsp_thread *thread)
{
	const uint64_t one = 1;

	(void)!write(thread->wake, &one, sizeof(one));
}

/* Put a relay into the inbox, once, and wake the thread if it may sleep. */
static void inbox_put(struct vsp_thread *thread, struct vsp_relay *relay, bool cancel)
{
	bool wake = false;

	pthread_mutex_lock(&thread->mutex);
	if (cancel && relay->cancels < 2)
		relay->cancels++;
	if (!relay->queued) {
		relay->queued = true;
		atomic_fetch_add(&relay->references, 1);
		wake = !thread->inbox;
		relay->next_inbox = NULL;
		*thread->inbox_tail = relay;
		thread->inbox_tail = &relay->next_inbox;
	}
	pthread_mutex_unlock(&thread->mutex);
	if (wake)
		thread_wake(thread);
}

void vsp_thread_give(struct vsp_thread *thread, struct vsp_relay *relay)
{
	relay->thread = thread;
	atomic_fetch_add(&thread->loop.load, 1);
	inbox_put(thread, relay, false);
}

void vsp_thread_cancel(struct vsp_relay *relay)
{
	inbox_put(relay->thread, relay, true);
}

void vsp_thread_ask(struct vsp_thread *thread)
{
	atomic_fetch_add(&thread->asked, 1);
	thread_wake(thread);
}

bool vsp_thread_is_silent(const struct vsp_thread *thread)
{
	return atomic_load(&thread->answered) != atomic_load(&thread->asked);
}

/*
 * Take one relay out of the inbox, with the inbox's reference to it; NULL where it is empty.
 * *ret_cancels is how often the relay was cancelled.
 */
static struct vsp_relay *inbox_take(struct vsp_thread *thread, int *ret_cancels, bool *ret_stopping)
{
	struct vsp_relay *relay;

	pthread_mutex_lock(&thread->mutex);
	*ret_stopping = thread->stopping;
	relay = thread->inbox;
	if (relay) {
		thread->inbox = relay->next_inbox;
		if (!thread->inbox)
			thread->inbox_tail = &thread->inbox;
		relay->queued = false;
		*ret_cancels = relay->cancels;
	}
	pthread_mutex_unlock(&thread->mutex);
	return relay;
}

/* ---- the loop ---- */

/* Start and cancel the relays in the inbox.  Whether the thread goes on. */
static bool inbox_serve(struct vsp_thread *thread)
{
	struct vsp_relay *relay;
	int cancels;
	bool stopping;

	while ((relay = inbox_take(thread, &cancels, &stopping))) {
		if (!relay->started)
			vsp_turn_start(relay, &thread->loop);
		if (cancels > 0 && !relay->ended)
			vsp_closing_begin(relay, &thread->loop, VSP_CANCELLED);
		if (cancels > 1)
			vsp_closing_hurry(relay, &thread->loop);
		vsp_relay_unref(relay);
	}
	return !stopping;
}

static void busy_serve(struct vsp_loop *loop)
{
	struct vsp_relay *relay = loop->busy;

	loop->busy = NULL;
	while (relay) {
		struct vsp_relay *next = relay->next_busy;

		relay->busy = false;
		if (!relay->closing)
			vsp_turn_move(relay, loop);
		vsp_relay_unref(relay);
		relay = next;
	}
}

/* Publish the relays' news, if it is time or the caller has asked; then answer. */
static void news_serve(struct vsp_thread *thread)
{
	unsigned asked = atomic_load(&thread->asked);
	bool answer = asked != thread->answered;

	if (answer || thread->loop.tell_ms <= thread->loop.now_ms)
		vsp_outbox_publish(thread->outbox, &thread->loop, answer);
	if (answer)
		atomic_store(&thread->answered, asked);
}

/* Return how long epoll_wait may sleep, in milliseconds; -1 is until an event. */
static int sleep_ms(const struct vsp_loop *loop)
{
	/* Spare pipes stay open for a second or two. */
	uint64_t longest_ms = loop->pipes.spare ? SPARE_MS : INT_MAX;
	uint64_t due_ms = vsp_timers_earliest_ms(&loop->timers);

	if (loop->tell_ms < due_ms)
		due_ms = loop->tell_ms;
	if (loop->busy)
		return 0;
	if (due_ms == NEVER)
		return loop->pipes.spare ? SPARE_MS : -1;
	if (due_ms <= loop->now_ms)
		return 0;
	return (int)(due_ms - loop->now_ms < longest_ms ? due_ms - loop->now_ms : longest_ms);
}

/*
 * Return when an event is served among those of one epoll_wait.  A new client waits for
 * its dial, and both sides for bytes; no side waits for a close, which takes longest.
 */
static enum rank event_rank(const struct epoll_event *event)
{
	if (!event->data.ptr || vsp_servers_own(event->data.u64))
		return NEW;
	return event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? ENDS : BYTES;
}

static void event_serve(struct vsp_thread *thread, const struct epoll_event *event)
{
	struct vsp_loop *loop = &thread->loop;

	if (vsp_servers_own(event->data.u64))
		vsp_servers_accept(thread->servers, event->data.u64, loop);
	else if (event->data.ptr)
		vsp_turn_event(event->data.ptr, loop, event->events);
	else
		thread->running = inbox_serve(thread);
}

/* Serve up to EVENTS events.  Whether there were as many, and more may wait. */
static bool events_serve(struct vsp_thread *thread, const struct epoll_event *events, int count)
{
	for (enum rank rank = NEW; rank <= ENDS; rank++)
		for (int i = 0; i < count; i++)
			if (event_rank(&events[i]) == rank)
				event_serve(thread, &events[i]);
	return count == EVENTS;
}

/*
 * Serve the timers that are due, after every event that came before them: the thread may not have
 * run for longer than a time-out, and bytes that wait are no silence.  A relay has two events.
 */
static void timers_serve(struct vsp_thread *thread)
{
	struct vsp_loop *loop = &thread->loop;
	struct epoll_event events[EVENTS];
	size_t most = 2 * loop->live_count / EVENTS + 1;
	bool more = vsp_timers_earliest_ms(&loop->timers) <= loop->now_ms;

	for (; more && most > 0; most--) {
		int count = epoll_wait(loop->epoll, events, EVENTS, 0);

		more = events_serve(thread, events, count);
	}
	vsp_turn_timers(loop);
}

static void *thread_main(void *argument)
{
	struct vsp_thread *thread = argument;
	struct vsp_loop *loop = &thread->loop;
	struct epoll_event events[EVENTS];

	while (thread->running) {
		int count = epoll_wait(loop->epoll, events, EVENTS, sleep_ms(loop));

		loop->now_ms = (uint64_t)vsp_clock_us() / 1000;
		if (loop->now_ms - thread->trimmed_ms >= SPARE_MS) {
			vsp_pipes_trim(&loop->pipes);
			thread->trimmed_ms = loop->now_ms;
		}
		busy_serve(loop);
		events_serve(thread, events, count);
		timers_serve(thread);
		news_serve(thread);
	}
	while (loop->live) {
		vsp_closing_begin(loop->live, loop, VSP_CANCELLED);
		if (loop->live && loop->live->closing)
			vsp_closing_hurry(loop->live, loop);
	}
	busy_serve(loop); /* for the list's references */
	vsp_outbox_publish(thread->outbox, loop, true);
	return NULL;
}

/* ---- its life ---- */

static void thread_release(struct vsp_thread *thread)
{
	if (thread->wake >= 0)
		close(thread->wake);
	if (thread->loop.epoll >= 0)
		close(thread->loop.epoll);
	vsp_pipes_close(&thread->loop.pipes);
	vsp_peers_close(&thread->loop.peers);
	free(thread->loop.scratch);
	free(thread->loop.timers.heap);
	pthread_mutex_destroy(&thread->mutex);
}

/* Open what the thread needs.  0, or a negative errno; thread_release follows in either case. */
static int thread_prepare(struct vsp_thread *thread)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};

	thread->running = true;
	thread->inbox_tail = &thread->inbox;
	thread->loop.thread = thread;
	thread->loop.changed_tail = &thread->loop.changed;
	thread->loop.tell_ms = NEVER;
	pthread_mutex_init(&thread->mutex, NULL);
	thread->loop.epoll = epoll_create1(EPOLL_CLOEXEC);
	/* Never read: edge-triggered, every write is an event. */
	thread->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	thread->loop.scratch = malloc(SCRATCH);
	if (thread->loop.epoll < 0 || thread->wake < 0 || !thread->loop.scratch)
		return -errno;
	return epoll_ctl(thread->loop.epoll, EPOLL_CTL_ADD, thread->wake, &event) < 0 ? -errno : 0;
}

int vsp_thread_start(struct vsp_thread *thread, struct vsp_outbox *outbox,
		     struct vsp_servers *servers, _Atomic int *pipes_left)
{
	sigset_t all;
	sigset_t before;
	int error;

	thread->outbox = outbox;
	thread->servers = servers;
	thread->loop.pipes.left = pipes_left;
	error = thread_prepare(thread);
	if (!error) {
		/* Signals are for the caller's thread. */
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		error = -pthread_create(&thread->id, NULL, thread_main, thread);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (error) {
		thread_release(thread);
		return error;
	}
	pthread_setname_np(thread->id, "vsp-pump");
	return 0;
}

void vsp_thread_stop(struct vsp_thread *thread)
{
	pthread_mutex_lock(&thread->mutex);
	thread->stopping = true;
	pthread_mutex_unlock(&thread->mutex);
	thread_wake(thread);
	pthread_join(thread->id, NULL);
	thread_release(thread);
}
