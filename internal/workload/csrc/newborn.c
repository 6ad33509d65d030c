// SPDX-License-Identifier: Apache-2.0
//
// newborn MIB write|remote|exit|exec
//
// Fills MIB of memory and forks a child that makes one long system call with all of
// it: write(2) to a pipe, which has to write it whole, or process_vm_readv(2).
//
// With exit and exec it forks 300, one after the other, that end at once or call exec,
// and prints the nanoseconds that each took to stderr.

#include "check.h"
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static uint64_t *memory, *copy, pages;

// write_all is the child: it writes to a pipe that the parent empties meanwhile.
static void write_all(int to)
{
	ssize_t n = write(to, memory, pages * PAGE);
	if (n != (ssize_t)(pages * PAGE))
		die("write of %lu bytes returned %zd", pages * PAGE, n);
}

// read_all is the parent: it verifies what comes.
static void read_all(int from)
{
	static uint64_t page[WORDS];
	for (uint64_t i = 0; i < pages; i++) {
		for (size_t have = 0; have < PAGE;) {
			ssize_t n = read(from, (char *)page + have, PAGE - have);
			if (n <= 0)
				die("the pipe ends in page %lu of %lu", i, pages);
			have += n;
		}
		page_check(page, i, 1);
	}
}

static void copy_all(void)
{
	struct iovec to = {copy, pages * PAGE}, from = {memory, pages * PAGE};
	ssize_t n = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
	if (n != (ssize_t)(pages * PAGE))
		die("process_vm_readv of %lu bytes returned %zd", pages * PAGE, n);
	range_check(copy, 0, pages, 1);
}

static int many(int exec)
{
	enum { CHILDREN = 300 };
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < CHILDREN; i++) {
		int status;
		pid_t child = fork();
		MUST(child >= 0);
		if (child == 0) {
			if (exec)
				execl("/bin/true", "true", (char *)0);
			_exit(exec);
		}
		MUST(waitpid(child, &status, 0) == child && status == 0);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	fprintf(stderr, "%ld\n", ((to.tv_sec - from.tv_sec) * 1000000000L + to.tv_nsec - from.tv_nsec) / CHILDREN);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: newborn MIB write|remote|exit|exec\n");
		return 2;
	}
	pages = number(argv[1], "MIB") * MIB_PAGES;
	int writes = !strcmp(step = argv[2], "write"), end[2], status;
	memory = anon(pages * PAGE);
	if (!strcmp(step, "remote"))
		copy = anon(pages * PAGE);
	range_write(memory, 0, pages, 1);
	if (!strcmp(step, "exit") || !strcmp(step, "exec"))
		return many(!strcmp(step, "exec"));
	MUST(pipe(end) == 0);
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		if (writes)
			write_all(end[1]);
		else
			copy_all();
		_exit(0);
	}
	MUST(close(end[1]) == 0);
	if (writes)
		read_all(end[0]);
	MUST(waitpid(child, &status, 0) == child);
	printf("child ended with %#x\n", status);
	return status != 0;
}
