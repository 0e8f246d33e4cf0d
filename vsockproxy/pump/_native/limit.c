/* Limits of open connections, which every thread takes places from and the caller changes. */

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "limit.h"

struct vsp_limit {
	_Atomic int64_t most;
	_Atomic int64_t live;   /* places taken */
	_Atomic int64_t unreported; /* connections that the caller has not released */
	_Atomic int references;
};

struct vsp_limit *vsp_limit_new(void)
{
	struct vsp_limit *limit = calloc(1, sizeof(*limit));

	if (limit)
		atomic_init(&limit->references, 1);
	return limit;
}

struct vsp_limit *vsp_limit_ref(struct vsp_limit *limit)
{
	atomic_fetch_add(&limit->references, 1);
	return limit;
}

void vsp_limit_unref(struct vsp_limit *limit)
{
	if (limit && atomic_fetch_sub(&limit->references, 1) == 1)
		free(limit);
}

void vsp_limit_set(struct vsp_limit *limit, int64_t most)
{
	atomic_store(&limit->most, most);
}

int64_t vsp_limit_live(const struct vsp_limit *limit)
{
	return atomic_load(&limit->live);
}

int64_t vsp_limit_unreported(const struct vsp_limit *limit)
{
	return atomic_load(&limit->unreported);
}

bool vsp_limit_take(struct vsp_limit *limit)
{
	/* Taken first, so that two threads never share the last place. */
	if (atomic_fetch_add(&limit->live, 1) >= atomic_load(&limit->most)) {
		atomic_fetch_sub(&limit->live, 1);
		return false;
	}
	atomic_fetch_add(&limit->unreported, 1);
	return true;
}

bool vsp_limit_is_near(const struct vsp_limit *limit)
{
	return 2 * (atomic_load(&limit->live) + 1) >= atomic_load(&limit->most);
}

void vsp_limit_give(struct vsp_limit *limit)
{
	atomic_fetch_sub(&limit->live, 1);
}

void vsp_limit_reported(struct vsp_limit *limit, int64_t connections)
{
	atomic_fetch_sub(&limit->unreported, connections);
}
