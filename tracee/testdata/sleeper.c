// SPDX-License-Identifier: Apache-2.0

// sleeper HOW FILE [FIFO]: blocks in a system call and writes to FILE what the
// call made of it: "result errno early", early being 1 if it came back before
// its time.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

// blocked reads FIFO into memory whose fault another process resolves when
// FIFO's name with ".go" appears.
static long blocked(const char *fifo)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		return -77;
	struct uffdio_api api = {.api = UFFD_API};
	char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register r = {.range = {(long)p, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &r))
		return -77;
	pid_t pid = fork();
	if (!pid) {
		char go[4096];
		snprintf(go, sizeof go, "%s.go", fifo);
		int at = open(go, O_RDONLY); // a fifo too
		char c;
		read(at, &c, 1);
		struct uffdio_zeropage z = {.range = {(long)p, 4096}};
		ioctl(fd, UFFDIO_ZEROPAGE, &z);
		_exit(0);
	}
	int in = open("/dev/zero", O_RDONLY);
	return read(in, p, 10);
}

static void *exec_none(void *arg)
{
	return arg;
}

static void *sleep_always(void *arg)
{
	for (;;)
		ppoll(NULL, 0, NULL, NULL);
	return arg;
}

// transfer writes more to a fifo than it has room for, while another thread sleeps.
static long transfer(const char *fifo)
{
	static char data[1 << 20];
	pthread_t t;
	if (pthread_create(&t, NULL, sleep_always, NULL))
		return -77;
	return write(open(fifo, O_WRONLY), data, sizeof data);
}

int main(int argc, char **argv)
{
	const char *how = argv[1];
	double span = 0.4, start = now();
	long r = -1;
	struct timespec ts = {0, 400000000};
	int word = 0;
	errno = 0;
	if (!strcmp(how, "spin")) {
		volatile unsigned long x = 0;
		while (now() - start < span)
			for (int i = 0; i < 1000; i++)
				x++;
		r = 0;
	} else if (!strcmp(how, "nanosleep")) {
		r = nanosleep(&ts, NULL);
	} else if (!strcmp(how, "futex")) {
		r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);
	} else if (!strcmp(how, "poll")) {
		r = poll(NULL, 0, 400);
	} else if (!strcmp(how, "read")) {
		char c;
		int fd = open(argv[3], O_RDONLY);
		span = 0;
		r = read(fd, &c, 1);
	} else if (!strcmp(how, "wait")) {
		pid_t pid = fork();
		if (!pid) {
			nanosleep(&ts, NULL);
			_exit(9);
		}
		r = waitpid(pid, NULL, 0) == pid ? 0 : -1;
	} else if (!strcmp(how, "vfork")) {
		pid_t pid = vfork();
		if (!pid) {
			while (now() - start < span)
				;
			_exit(9);
		}
		r = waitpid(pid, NULL, 0) == pid ? 0 : -1;
	} else if (!strcmp(how, "churn")) {
		while (now() - start < span) {
			pthread_t t;
			pthread_create(&t, NULL, exec_none, NULL);
			pthread_join(t, NULL);
		}
		r = 0;
	} else if (!strcmp(how, "blocked")) {
		span = 0;
		r = blocked(argv[3]);
	} else if (!strcmp(how, "transfer")) {
		span = 0;
		r = transfer(argv[3]);
	}
	int e = errno;
	FILE *f = fopen(argv[2], "w");
	fprintf(f, "%ld %d %d", r, r < 0 ? e : 0, now() - start < span);
	fclose(f);
	return 0;
}
