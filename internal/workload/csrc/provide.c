// SPDX-License-Identifier: Apache-2.0
//
// A program that uses userfaultfd(2) and times that. It knows nothing of
// faultline.
//
//	provide fault N     N faults, one after the other, each answered by a copy
//	provide copy N      N copies of 4 KiB to pages that nobody waits for
//	provide bulk N      the same N pages, 64 a copy
//	provide reads N     N reads of 64 bytes, with a descriptor and a registered
//	                    range elsewhere
//	provide alone N     the same without a descriptor
//	provide work N      N rounds of what programs do: compute, allocate, open and
//	                    read files, make threads
//
// It prints one JSON object: nanoseconds for each, and for faults quantiles.

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BATCH = 64 };

static int fd;
static char *source;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static char *map(size_t n)
{
	char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

// watched returns memory that is registered for missing pages.
static char *watched(size_t n)
{
	fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		die("userfaultfd");
	struct uffdio_api api = {.api = UFFD_API};
	if (ioctl(fd, UFFDIO_API, &api))
		die("UFFDIO_API");
	char *p = map(n);
	struct uffdio_register r = {.range = {(unsigned long)p, n}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(fd, UFFDIO_REGISTER, &r))
		die("UFFDIO_REGISTER");
	return p;
}

static void copy(char *to, size_t n)
{
	struct uffdio_copy c = {.dst = (unsigned long)to, .src = (unsigned long)source, .len = n};
	if (ioctl(fd, UFFDIO_COPY, &c) || c.copy != (long)n)
		die("UFFDIO_COPY");
}

static void *serve(void *unused)
{
	for (;;) {
		struct uffd_msg m;
		if (read(fd, &m, sizeof m) != sizeof m)
			die("read");
		copy((char *)(m.arg.pagefault.address & ~(PAGE - 1ul)), PAGE);
	}
	return unused;
}

static int less(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static void faults(int n)
{
	char *p = watched((size_t)n * PAGE);
	double *took = malloc(n * sizeof *took);
	pthread_t t;
	if (took == NULL || pthread_create(&t, NULL, serve, NULL))
		die("pthread_create");
	for (int i = 0; i < n; i++) {
		double from = now();
		char c = *(volatile char *)(p + (size_t)i * PAGE);
		took[i] = now() - from;
		if (c != 1) {
			fprintf(stderr, "page %d has %d\n", i, c);
			exit(1);
		}
	}
	qsort(took, n, sizeof *took, less);
	printf("{\"faults\":%d,\"p50_ns\":%.0f,\"p90_ns\":%.0f,\"p99_ns\":%.0f,\"max_ns\":%.0f}\n", n,
	       took[n / 2], took[n * 9 / 10], took[n * 99 / 100], took[n - 1]);
}

static void copies(int n, int pages)
{
	char *p = watched((size_t)n * PAGE);
	double from = now();
	for (int i = 0; i + pages <= n; i += pages)
		copy(p + (size_t)i * PAGE, (size_t)pages * PAGE);
	printf("{\"each_ns\":%.1f}\n", (now() - from) / n);
}

static void reads(int n, int with)
{
	if (with)
		watched(BATCH * PAGE);
	int zero = open("/dev/zero", O_RDONLY);
	char b[64];
	double from = now();
	for (int i = 0; i < n; i++)
		if (read(zero, b, sizeof b) != sizeof b)
			die("read");
	printf("{\"each_ns\":%.1f}\n", (now() - from) / n);
}

static void *nothing(void *unused)
{
	return unused;
}

static void work(int n)
{
	unsigned long sum = 0;
	for (int i = 0; i < n; i++) {
		size_t size = 1 << 20;
		unsigned char *p = malloc(size);
		if (p == NULL)
			die("malloc");
		memset(p, i, size);
		for (int k = 0; k < 20; k++)
			for (size_t j = 0; j < size; j++)
				sum = sum * 31 + p[j];
		free(p);
		for (int k = 0; k < 10; k++) {
			int f = open("/proc/self/stat", O_RDONLY);
			char b[512];
			sum += read(f, b, sizeof b);
			close(f);
		}
		pthread_t t;
		if (pthread_create(&t, NULL, nothing, NULL))
			die("pthread_create");
		pthread_join(t, NULL);
	}
	fprintf(stderr, "%lu\n", sum);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int n = atoi(argv[2]);
	source = map(BATCH * PAGE);
	memset(source, 1, BATCH * PAGE);
	if (!strcmp(argv[1], "fault"))
		faults(n);
	else if (!strcmp(argv[1], "copy"))
		copies(n, 1);
	else if (!strcmp(argv[1], "bulk"))
		copies(n, BATCH);
	else if (!strcmp(argv[1], "reads"))
		reads(n, 1);
	else if (!strcmp(argv[1], "alone"))
		reads(n, 0);
	else if (!strcmp(argv[1], "work"))
		work(n);
	else
		return 2;
	return 0;
}
