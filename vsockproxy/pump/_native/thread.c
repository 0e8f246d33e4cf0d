/* A pump thread: it sleeps in epoll_wait, and moves bytes while there is something to move. */

#define _GNU_SOURCE

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static uint64_t clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Take one relay out of the inbox and say what is wanted; NULL where there is none. */
static struct vsp_relay *inbox_take(struct vsp_thread *thread, bool *ret_cancelled, bool *ret_stopping)
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
		*ret_cancelled = relay->cancelled;
	}
	pthread_mutex_unlock(&thread->mutex);
	return relay;
}

/* Whether the thread goes on. */
static bool inbox_serve(struct vsp_thread *thread)
{
	struct vsp_relay *relay;
	bool cancelled;
	bool stopping;

	atomic_store(&thread->answered, atomic_load(&thread->asked));
	while ((relay = inbox_take(thread, &cancelled, &stopping))) {
		if (!relay->started)
			vsp_relay_start(relay);
		if (cancelled)
			vsp_relay_end(relay, VSP_CANCELLED);
		vsp_relay_unref(relay);
	}
	return !stopping;
}

/* Put a relay into its thread's inbox, once, and wake the thread if it may sleep. */
void vsp_inbox_put(struct vsp_relay *relay, bool cancel)
{
	struct vsp_thread *thread = relay->thread;
	bool wake = false;

	pthread_mutex_lock(&thread->mutex);
	relay->cancelled |= cancel;
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
		vsp_thread_wake(thread);
}

void vsp_thread_wake(struct vsp_thread *thread)
{
	const uint64_t one = 1;

	(void)!write(thread->wake, &one, sizeof(one));
}

static void busy_serve(struct vsp_thread *thread)
{
	struct vsp_relay *relay = thread->busy;

	thread->busy = NULL;
	while (relay) {
		struct vsp_relay *next = relay->next_busy;

		relay->busy = false;
		if (!relay->ended)
			vsp_relay_turn(relay);
		vsp_relay_unref(relay);
		relay = next;
	}
}

static void timers_serve(struct vsp_thread *thread)
{
	struct vsp_relay *relay;

	while ((relay = vsp_timer_due(thread)))
		vsp_relay_due(relay);
}

/* Hand this turn's ends to the caller. */
static void ends_publish(struct vsp_thread *thread)
{
	const uint64_t one = 1;
	struct vsp_pump *pump = thread->pump;
	struct vsp_relay *last = thread->ended;
	size_t count = 1;
	bool wake;

	if (!last)
		return;
	for (; last->next_ended; last = last->next_ended)
		count++;
	atomic_fetch_sub(&thread->load, count);
	pthread_mutex_lock(&pump->mutex);
	wake = !pump->ended;
	last->next_ended = pump->ended;
	pump->ended = thread->ended;
	pthread_mutex_unlock(&pump->mutex);
	thread->ended = NULL;
	if (wake)
		(void)!write(pump->done, &one, sizeof(one));
}

/* How long to sleep, for epoll_wait: -1 for until something happens. */
static int sleep_ms(const struct vsp_thread *thread)
{
	/* Pipes that nobody uses are kept for a quiet second. */
	uint64_t longest = thread->pipes ? SPARE_MS : INT_MAX;
	uint64_t due_ms;

	if (thread->busy)
		return 0;
	if (thread->timer_count == 0)
		return thread->pipes ? SPARE_MS : -1;
	due_ms = thread->timers[0]->deadline_ms;
	if (due_ms <= thread->now_ms)
		return 0;
	return due_ms - thread->now_ms < longest ? (int)(due_ms - thread->now_ms) : (int)longest;
}

static void *thread_main(void *argument)
{
	struct vsp_thread *thread = argument;
	struct epoll_event events[EVENTS];
	bool running = true;

	while (running) {
		int count = epoll_wait(thread->epoll, events, EVENTS, sleep_ms(thread));

		thread->now_ms = clock_ms();
		if (count > 0)
			thread->woken_ms = thread->now_ms;
		else if (thread->now_ms - thread->woken_ms >= SPARE_MS)
			vsp_pipes_free(thread);
		busy_serve(thread);
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr)
				vsp_side_event(events[i].data.ptr, events[i].events);
			else
				running = inbox_serve(thread);
		}
		timers_serve(thread);
		ends_publish(thread);
	}
	while (thread->live)
		vsp_relay_end(thread->live, VSP_CANCELLED);
	busy_serve(thread);
	ends_publish(thread);
	return NULL;
}

static void thread_release(struct vsp_thread *thread)
{
	if (thread->wake >= 0)
		close(thread->wake);
	if (thread->epoll >= 0)
		close(thread->epoll);
	vsp_pipes_free(thread);
	free(thread->scratch);
	free(thread->timers);
	pthread_mutex_destroy(&thread->mutex);
}

/* 0, or a negative errno and nothing is left behind. */
int vsp_thread_start(struct vsp_pump *pump, struct vsp_thread *thread)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
	sigset_t all;
	sigset_t before;
	int error;

	thread->pump = pump;
	thread->inbox_tail = &thread->inbox;
	pthread_mutex_init(&thread->mutex, NULL);
	thread->epoll = epoll_create1(EPOLL_CLOEXEC);
	/* Never read: every write is an edge of its own. */
	thread->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	thread->scratch = malloc(SCRATCH);
	if (thread->epoll < 0 || thread->wake < 0 || !thread->scratch ||
	    epoll_ctl(thread->epoll, EPOLL_CTL_ADD, thread->wake, &event) < 0) {
		error = errno;
		thread_release(thread);
		return -error;
	}
	/* Signals are for the caller's thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread->id, NULL, thread_main, thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		thread_release(thread);
		return -error;
	}
	pthread_setname_np(thread->id, "vsp-pump");
	return 0;
}

void vsp_thread_stop(struct vsp_thread *thread)
{
	pthread_mutex_lock(&thread->mutex);
	thread->stopping = true;
	pthread_mutex_unlock(&thread->mutex);
	vsp_thread_wake(thread);
	pthread_join(thread->id, NULL);
	thread_release(thread);
}
