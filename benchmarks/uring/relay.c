/*
 * The simplest relay by io_uring, to compare with the one by epoll (../load/relay.c): one thread,
 * a multishot receive for each socket into a ring of shared buffers, and one send at a time to each
 * socket; requests of a turn are submitted by the call that waits for the next one.
 *
 *     relay LISTEN TARGET
 *
 * It measures an idea and is not for use: a connection whose reset is not noticed is kept.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../load/load.h"

enum {
	ENTRIES = 4096,
	BUFFERS = 4096, /* a power of two */
	BUFFER = 16384,
	GROUP = 1,
};

enum kind { ACCEPT, RECEIVE, SEND };

/* Bytes that a side is to send, in the buffer of the same index. */
struct piece {
	unsigned int size;
	struct piece *next;
};

struct side {
	int fd;
	struct side *other;
	struct piece *first; /* being sent */
	struct piece *last;
	bool receiving;
	bool ended;   /* its EOF was read */
	bool shut;    /* the other side's EOF was passed on to it */
};

static struct io_uring ring;
static struct io_uring_buf_ring *buffers;
static unsigned char (*memory)[BUFFER];
static struct piece pieces[BUFFERS];
static struct side *starving; /* its receive ended for want of a buffer */

static void *tagged(void *pointer, enum kind kind)
{
	return (void *)((uintptr_t)pointer | (uintptr_t)kind);
}

static struct io_uring_sqe *request(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (sqe == NULL) {
		io_uring_submit(&ring);
		sqe = io_uring_get_sqe(&ring);
	}
	if (sqe == NULL)
		fail("the submission queue is full");
	return sqe;
}

static void side_receive(struct side *side)
{
	struct io_uring_sqe *sqe = request();

	io_uring_prep_recv_multishot(sqe, side->fd, NULL, 0, 0);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = GROUP;
	io_uring_sqe_set_data(sqe, tagged(side, RECEIVE));
	side->receiving = true;
}

static void side_send(struct side *side)
{
	struct io_uring_sqe *sqe = request();
	struct piece *piece = side->first;

	io_uring_prep_send(sqe, side->fd, memory[piece - pieces], piece->size,
			   MSG_NOSIGNAL | MSG_WAITALL);
	io_uring_sqe_set_data(sqe, tagged(side, SEND));
}

static void buffer_return(unsigned short buffer)
{
	io_uring_buf_ring_add(buffers, memory[buffer], BUFFER, buffer,
			      io_uring_buf_ring_mask(BUFFERS), 0);
	io_uring_buf_ring_advance(buffers, 1);
	if (starving) {
		struct side *side = starving;

		starving = NULL;
		side_receive(side);
	}
}

/* Pass an EOF on once everything before it was sent; close both sides once both have ended. */
static void side_finish(struct side *side)
{
	struct side *other = side->other;

	if (other->ended && !side->first && !side->shut) {
		side->shut = true;
		shutdown(side->fd, SHUT_WR);
	}
	if (side->shut && other->shut && !side->receiving && !other->receiving) {
		close(side->fd);
		close(other->fd);
		free(side < other ? side : other); /* they are one allocation */
	}
}

static void side_queue(struct side *side, struct piece *piece, unsigned int size)
{
	*piece = (struct piece){.size = size};
	if (side->first) {
		side->last->next = piece;
		side->last = piece;
	} else {
		side->first = side->last = piece;
		side_send(side);
	}
}

static void received(struct side *side, const struct io_uring_cqe *cqe)
{
	side->receiving = cqe->flags & IORING_CQE_F_MORE;
	if (cqe->res > 0)
		side_queue(side->other, &pieces[cqe->flags >> IORING_CQE_BUFFER_SHIFT],
			   (unsigned int)cqe->res);
	if (cqe->res == -ENOBUFS && !starving)
		starving = side;
	else if (cqe->res > 0 || cqe->res == -ENOBUFS) {
		if (!side->receiving)
			side_receive(side);
	} else {
		side->ended = true;
		side_finish(side->other);
	}
}

/* A send that failed is noticed by the receive. */
static void sent(struct side *side)
{
	struct piece *piece = side->first;

	side->first = piece->next;
	buffer_return((unsigned short)(piece - pieces));
	if (side->first)
		side_send(side);
	else
		side_finish(side);
}

static void accepted(int fd, const char *target)
{
	struct side *pair;

	if (fd < 0)
		return;
	pair = calloc(2, sizeof(*pair));
	if (pair == NULL)
		fail("out of memory");
	pair[0] = (struct side){.fd = fd, .other = &pair[1]};
	pair[1] = (struct side){.fd = address_connect(target), .other = &pair[0]};
	side_receive(&pair[0]);
	side_receive(&pair[1]);
}

static void ring_make(void)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_CQSIZE,
		.cq_entries = 4 * ENTRIES,
	};
	struct io_uring_buf_reg group = {.ring_entries = BUFFERS, .bgid = GROUP};
	void *place;
	int error = io_uring_queue_init_params(ENTRIES, &ring, &params);

	if (error < 0)
		fail("io_uring_setup: %s", strerror(-error));
	if (posix_memalign(&place, 4096, BUFFERS * sizeof(struct io_uring_buf)))
		fail("out of memory");
	buffers = place;
	memory = malloc(BUFFERS * sizeof(*memory));
	if (memory == NULL)
		fail("out of memory");
	group.ring_addr = (uintptr_t)buffers;
	io_uring_buf_ring_init(buffers);
	error = io_uring_register_buf_ring(&ring, &group, 0);
	if (error < 0)
		fail("io_uring_register_buf_ring: %s", strerror(-error));
	for (int i = 0; i < BUFFERS; i++)
		buffer_return((unsigned short)i);
}

int main(int argc, char **argv)
{
	struct io_uring_sqe *sqe;
	int listener;

	if (argc != 3)
		fail("usage: relay LISTEN TARGET");
	listener = address_listen(argv[1]);
	ring_make();
	sqe = request();
	io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
	io_uring_sqe_set_data(sqe, tagged(NULL, ACCEPT));
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct io_uring_cqe *cqe;
		unsigned int head;
		unsigned int number = 0;

		io_uring_submit_and_wait(&ring, 1);
		io_uring_for_each_cqe(&ring, head, cqe) {
			uintptr_t data = (uintptr_t)io_uring_cqe_get_data(cqe);
			struct side *side = (struct side *)(data & ~(uintptr_t)3);

			switch ((enum kind)(data & 3)) {
			case ACCEPT:
				accepted(cqe->res, argv[2]);
				break;
			case RECEIVE:
				received(side, cqe);
				break;
			case SEND:
				sent(side);
			}
			number++;
		}
		io_uring_cq_advance(&ring, number);
	}
}
