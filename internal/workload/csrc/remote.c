// SPDX-License-Identifier: Apache-2.0

// remote MIB: processes that read and write the memory of each other by
// process_vm_readv(2) and process_vm_writev(2): a parent that of its child, a child
// that of its parent, a process its own, and a program that was started anew, and is
// small, that of who started it.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNK = 96 << 10 };

static char *memory;
static size_t size;

static char at(size_t i, int salt) { return (char)((i >> 12) * 37 + i + salt); }

static void fill(int salt)
{
	for (size_t i = 0; i < size; i += 512)
		memory[i] = at(i, salt);
}

static size_t wrong(int salt)
{
	size_t n = 0;
	for (size_t i = 0; i < size; i += 512)
		n += memory[i] != at(i, salt);
	return n;
}

// look reads all memory of a process in pieces and returns how much of it was wrong.
static size_t look(pid_t pid, const char *from, int salt)
{
	char *buf = malloc(CHUNK);
	size_t n = 0;
	for (size_t i = 0; i < size; i += CHUNK) {
		size_t len = size - i < CHUNK ? size - i : CHUNK;
		struct iovec mine = { buf, len };
		struct iovec theirs[2] = { { (char *)from + i, len / 2 }, { (char *)from + i + len / 2, len - len / 2 } };
		if (process_vm_readv(pid, &mine, 1, theirs, 2, 0) != (ssize_t)len) {
			n += len;
			continue;
		}
		for (size_t j = 0; j < len; j += 512)
			n += buf[j] != at(i + j, salt);
	}
	free(buf);
	return n;
}

static pid_t child(void)
{
	fflush(stdout);
	return fork();
}

static void done(void)
{
	fflush(stdout);
	_exit(0);
}

int main(int argc, char **argv)
{
	if (argc == 4) { // started anew: of whom, where, how much
		size = strtoul(argv[3], NULL, 10);
		printf("program %zu\n", look(atoi(argv[1]), (char *)strtoul(argv[2], NULL, 10), 1));
		return 0;
	}
	if (argc != 2) {
		fprintf(stderr, "usage: remote MIB\n");
		return 2;
	}
	size = strtoul(argv[1], NULL, 10) << 20;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	fill(1);
	printf("self %zu\n", look(getpid(), memory, 1));
	if (child() == 0) {
		printf("parent %zu\n", look(getppid(), memory, 1));
		done();
	}
	wait(NULL);
	if (child() == 0) {
		char pid[24], where[24], much[24];
		sprintf(pid, "%d", getppid());
		sprintf(where, "%lu", (unsigned long)memory);
		sprintf(much, "%zu", size);
		execl("/proc/self/exe", "remote", pid, where, much, NULL);
		_exit(1);
	}
	wait(NULL);
	int ready[2], go[2];
	char b = 0;
	if (pipe(ready) || pipe(go))
		return 1;
	pid_t pid = child();
	if (pid == 0) {
		fill(2);
		if (write(ready[1], &b, 1) != 1 || read(go[0], &b, 1) != 1)
			_exit(1);
		printf("written %zu\n", wrong(3));
		done();
	}
	if (read(ready[0], &b, 1) != 1)
		return 1;
	printf("child %zu\n", look(pid, memory, 2));
	fill(3);
	size_t sent = 0;
	for (size_t i = 0; i < size; i += CHUNK) {
		struct iovec v = { memory + i, size - i < CHUNK ? size - i : CHUNK };
		sent += process_vm_writev(pid, &v, 1, &v, 1, 0);
	}
	printf("sent %d\n", sent == size);
	fflush(stdout);
	if (write(go[1], &b, 1) != 1)
		return 1;
	wait(NULL);
	return 0;
}
