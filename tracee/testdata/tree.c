// SPDX-License-Identifier: Apache-2.0

// tree: three processes with three threads each that never end by themselves,
// some of them in loops, some asleep. Each writes a byte to standard output
// when it is complete; the pipe is closed when the last one is dead.
//
// tree daemon FIFO: leaves a daemon behind, exits with 3. The daemon ends
// with status 4 when FIFO is opened for writing and closed.
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static void *spin(void *arg)
{
	for (volatile long i = 0;; i++)
		;
	return arg;
}

static void *nap(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "daemon")) {
		if (fork())
			_exit(3);
		setsid();
		if (fork())
			_exit(0);
		char c;
		int fd = open(argv[2], O_RDONLY);
		while (read(fd, &c, 1) > 0)
			;
		_exit(4);
	}
	if (fork())
		fork();
	pthread_t t;
	pthread_create(&t, NULL, spin, NULL);
	pthread_create(&t, NULL, nap, NULL);
	write(1, "x", 1);
	nap(NULL);
}
