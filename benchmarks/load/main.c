/*
 * Load for proxies, as a client and as a server, that notices a lost byte.
 *
 *     load serve ADDRESS [SKIPPED]           answer requests, behind so many bytes
 *     load run ADDRESS [OPTION...] GROUP...  send them (see run.c)
 *     load relay ADDRESS TARGET              a plain relay, to compare others with
 *
 * An address is tcp:IPV4:PORT, unix:PATH, vsock:CID:PORT, or (serve) mux:PATH.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "load.h"

static void allow_descriptors(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";

	allow_descriptors();
	pattern_make();
	if (strcmp(command, "serve") == 0 && (argc == 3 || argc == 4))
		serve(argv[2], argc == 4 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0);
	if (strcmp(command, "relay") == 0 && argc == 4)
		relay(argv[2], argv[3]);
	if (strcmp(command, "run") != 0 || argc < 4)
		fail("usage: serve ADDRESS [SKIPPED] | run ADDRESS [OPTION...] GROUP... | relay ADDRESS TARGET");
	run(argv[2], argc - 3, argv + 3);
	return 0;
}
