// SPDX-License-Identifier: Apache-2.0

// join THREADS MIB: threads that end while the words which the kernel clears
// at their end have not been touched for long.
//
// Every thread has a page of its own for that word (CLONE_CHILD_CLEARTID, on
// which pthread_join waits). When all run, a ballast of MIB is gone through
// some times, so that the pages leave memory. Then the threads end, without
// touching them, and the words must be zero.
#define _GNU_SOURCE
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STACK = 64 << 10, PAGE = 4096 };

static volatile int over;

static int sleeper(void *arg)
{
	(void)arg;
	while (!over) {
		struct timespec ms = { 0, 1000000 };
		nanosleep(&ms, NULL);
	}
	syscall(SYS_exit, 0);
	return 0;
}

static int tasks(void)
{
	int n = 0;
	DIR *d = opendir("/proc/self/task");
	if (!d)
		return -1;
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: join THREADS MIB\n");
		return 2;
	}
	int threads = atoi(argv[1]);
	size_t size = strtoul(argv[2], NULL, 10) << 20;
	unsigned char *ballast = malloc(size);
	char *words = mmap(NULL, (size_t)threads * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!ballast || words == MAP_FAILED)
		return 1;
	// The first pass makes the program large, the others push pages out.
	for (size_t i = 0; i < size; i += PAGE)
		ballast[i] = 1;
	for (int i = 0; i < threads; i++) {
		char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		pid_t *word = (pid_t *)(words + (size_t)i * PAGE);
		int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
			    CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
		if (stack == MAP_FAILED || clone(sleeper, stack + STACK, flags, NULL, word, NULL, word) < 0)
			return 1;
	}
	for (int pass = 2; pass < 6; pass++)
		for (size_t i = 0; i < size; i += PAGE)
			ballast[i] = (unsigned char)(i >> 12) ^ pass;
	over = 1;
	while (tasks() > 1) {
		struct timespec ms = { 0, 1000000 };
		nanosleep(&ms, NULL);
	}
	int left = 0;
	for (int i = 0; i < threads; i++)
		left += *(pid_t *)(words + (size_t)i * PAGE) != 0;
	printf("%d threads ended, %d words were not cleared\n", threads, left);
	return left != 0;
}
