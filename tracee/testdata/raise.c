// SPDX-License-Identifier: Apache-2.0

// raise SIGNAL [core]: dies by a signal, with a core dump if it is of that
// kind.
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

int main(int argc, char **argv)
{
	struct rlimit r = {argc > 2 ? 1 << 20 : 0, RLIM_INFINITY};
	setrlimit(RLIMIT_CORE, &r);
	raise(atoi(argv[1]));
	return 0;
}
