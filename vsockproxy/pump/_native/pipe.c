/*
 * The pipes of a thread, through which long streams are spliced.
 *
 * A direction has one only while its stream lasts: an idle relay has none.  All threads'
 * together are few, for their descriptors come out of what the caller keeps back from
 * connections; who gets none copies.
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "internal.h"

static void pipe_free(struct vsp_thread *thread, struct vsp_pipe *pipe)
{
	close(pipe->in);
	close(pipe->out);
	free(pipe);
	atomic_fetch_add(&thread->pump->pipes_left, 1);
}

struct vsp_pipe *vsp_pipe_take(struct vsp_thread *thread)
{
	struct vsp_pipe *pipe = thread->pipes;
	int ends[2];

	if (pipe) {
		thread->pipes = pipe->next;
		return pipe;
	}
	if (atomic_fetch_sub(&thread->pump->pipes_left, 1) <= 0)
		goto none;
	pipe = calloc(1, sizeof(*pipe));
	if (!pipe || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
		free(pipe);
		goto none;
	}
	pipe->out = ends[0];
	pipe->in = ends[1];
	/* A smaller one serves too: a user has so many pages for pipes in all (pipe(7)). */
	(void)fcntl(pipe->in, F_SETPIPE_SZ, SCRATCH);
	return pipe;
none:
	atomic_fetch_add(&thread->pump->pipes_left, 1);
	return NULL;
}

void vsp_pipe_give(struct vsp_thread *thread, struct vsp_pipe *pipe)
{
	/* What is left in it was for a peer that is gone. */
	if (pipe->level > 0) {
		pipe_free(thread, pipe);
		return;
	}
	pipe->next = thread->pipes;
	thread->pipes = pipe;
}

int vsp_pipes_most(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 0;
	return limit.rlim_cur / TABLE_PART < PIPES ? (int)(limit.rlim_cur / TABLE_PART) : PIPES;
}

void vsp_pipes_free(struct vsp_thread *thread)
{
	while (thread->pipes) {
		struct vsp_pipe *pipe = thread->pipes;

		thread->pipes = pipe->next;
		pipe_free(thread, pipe);
	}
}
