/*
 * The pipes of a thread, through which long streams are spliced.
 *
 * A direction has one only while its stream lasts: an idle relay has none.  There are few, so
 * that descriptors are left for connections; who gets none copies.
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

static void pipe_free(struct vsp_thread *thread, struct vsp_pipe *pipe)
{
	close(pipe->in);
	close(pipe->out);
	free(pipe);
	thread->pipe_count--;
}

struct vsp_pipe *vsp_pipe_take(struct vsp_thread *thread)
{
	struct vsp_pipe *pipe = thread->pipes;
	int ends[2];

	if (pipe) {
		thread->pipes = pipe->next;
		return pipe;
	}
	if (thread->pipe_count >= PIPES)
		return NULL;
	pipe = calloc(1, sizeof(*pipe));
	if (!pipe || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
		free(pipe);
		return NULL;
	}
	pipe->out = ends[0];
	pipe->in = ends[1];
	/* A smaller one serves too: a user has so many pages for pipes in all (pipe(7)). */
	(void)fcntl(pipe->in, F_SETPIPE_SZ, SCRATCH);
	thread->pipe_count++;
	return pipe;
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

void vsp_pipes_free(struct vsp_thread *thread)
{
	while (thread->pipes) {
		struct vsp_pipe *pipe = thread->pipes;

		thread->pipes = pipe->next;
		pipe_free(thread, pipe);
	}
}
