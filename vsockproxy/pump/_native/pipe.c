/*
 * The pipes of a thread, through which long streams are spliced.
 *
 * A direction has a pipe only while its stream lasts, so an idle relay has none.  The number of
 * pipes of all threads together is small: their descriptors come out of those that the caller
 * reserves.  A direction without a pipe copies.
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pipe.h"

enum {
	PIPES = 16,      /* of all threads together, at most: ... */
	TABLE_PART = 16, /* ... and no more than one in this many descriptors */
};

static void pipe_free(struct vsp_pipes *pipes, struct vsp_pipe *pipe)
{
	close(pipe->in);
	close(pipe->out);
	free(pipe);
	atomic_fetch_add(pipes->left, 1);
}

int vsp_pipes_most(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 0;
	return limit.rlim_cur / TABLE_PART < PIPES ? (int)(limit.rlim_cur / TABLE_PART) : PIPES;
}

struct vsp_pipe *vsp_pipe_take(struct vsp_pipes *pipes)
{
	struct vsp_pipe *pipe = pipes->spare;
	int ends[2];

	if (pipe) {
		pipes->spare = pipe->next;
		pipes->spares--;
		if (pipes->unused > pipes->spares)
			pipes->unused = pipes->spares;
		return pipe;
	}
	if (atomic_fetch_sub(pipes->left, 1) <= 0)
		goto none;
	pipe = calloc(1, sizeof(*pipe));
	if (!pipe || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
		free(pipe);
		goto none;
	}
	pipe->out = ends[0];
	pipe->in = ends[1];
	/* A smaller pipe works too: the kernel limits a user's pages for pipes (pipe(7)). */
	(void)fcntl(pipe->in, F_SETPIPE_SZ, PIPE_SIZE);
	return pipe;
none:
	atomic_fetch_add(pipes->left, 1);
	return NULL;
}

void vsp_pipe_return(struct vsp_pipes *pipes, struct vsp_pipe *pipe)
{
	/* Its bytes were for a peer that has closed: another stream must not get them. */
	if (pipe->level > 0) {
		pipe_free(pipes, pipe);
		return;
	}
	pipe->next = pipes->spare;
	pipes->spare = pipe;
	pipes->spares++;
}

static void pipes_close(struct vsp_pipes *pipes, unsigned count)
{
	for (; count > 0; count--) {
		struct vsp_pipe *pipe = pipes->spare;

		pipes->spare = pipe->next;
		pipes->spares--;
		pipe_free(pipes, pipe);
	}
}

void vsp_pipes_trim(struct vsp_pipes *pipes)
{
	pipes_close(pipes, pipes->unused);
	pipes->unused = pipes->spares;
}

void vsp_pipes_close(struct vsp_pipes *pipes)
{
	pipes_close(pipes, pipes->spares);
}
