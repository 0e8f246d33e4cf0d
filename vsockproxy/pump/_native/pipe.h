/* Pipes, through which long streams are spliced: the pool of one thread. */

#ifndef VSP_PIPE_H
#define VSP_PIPE_H

#include <stdatomic.h>
#include <stddef.h>

enum {
	PIPE_SIZE = 256 * 1024, /* bytes */
};

/* A pipe in use, or a spare one in its thread's pool. */
struct vsp_pipe {
	int in;
	int out;
	size_t level; /* bytes in it */
	struct vsp_pipe *next;
};

/* The pipes of one thread. */
struct vsp_pipes {
	struct vsp_pipe *spare; /* open, empty and in no direction's use */
	unsigned spares;        /* their number, */
	unsigned unused;        /* and its lowest since the last vsp_pipes_trim */
	_Atomic int *left;      /* how many more all threads together may open */
};

/* Return how many pipes all threads of a pump together may open. */
int vsp_pipes_most(void);

/*
 * Take an empty pipe out of the pool; NULL where the limit is reached or the kernel has none.
 * Goes back by vsp_pipe_return.
 */
struct vsp_pipe *vsp_pipe_take(struct vsp_pipes *pipes);

/* Give a pipe back, empty or not. */
void vsp_pipe_return(struct vsp_pipes *pipes, struct vsp_pipe *pipe);

/* Close the spare pipes that were not needed since the last call. */
void vsp_pipes_trim(struct vsp_pipes *pipes);

/* Close all spare pipes. */
void vsp_pipes_close(struct vsp_pipes *pipes);

#endif
