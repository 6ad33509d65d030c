// SPDX-License-Identifier: Apache-2.0
//
// floor [ROUNDS]
//
// What one demand fault costs at least: a thread reads random pages of 32 MiB,
// a second one on the same CPU blocks in read and answers each fault by one
// UFFDIO_COPY of a constant page. Prints the latencies in nanoseconds as JSON.
//
// The same CPU, because waking another one that sleeps is far slower than the
// fault itself, on virtual machines above all.

#include "check.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

enum { PAGES = 8192 };

static int fd;
static uint64_t constant[WORDS] __attribute__((aligned(4096)));

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int f = syscall(SYS_userfaultfd, O_CLOEXEC);
	int device = f < 0 ? open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) : -1;
	if (device >= 0) {
		f = ioctl(device, _IO(0xAA, 0), O_CLOEXEC);
		close(device);
	}
	if (f < 0) {
		fprintf(stderr, "floor: userfaultfd: %s\n", strerror(errno));
		exit(1);
	}
	MUST(ioctl(f, UFFDIO_API, &api) == 0);
	return f;
}

static void *serve(void *unused)
{
	(void)unused;
	for (;;) {
		struct uffd_msg m;
		MUST(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
		struct uffdio_copy c = { .dst = m.arg.pagefault.address & ~(PAGE - 1),
			.src = (uintptr_t)constant, .len = PAGE };
		// A signal may have made the thread fault twice.
		MUST(ioctl(fd, UFFDIO_COPY, &c) == 0 || errno == EEXIST);
	}
	return 0;
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

// pin keeps this thread, and those it makes, on the first CPU it may use.
static int pin(void)
{
	cpu_set_t allowed, one;
	int cpu = 0;
	MUST(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
	while (!CPU_ISSET(cpu, &allowed))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	MUST(sched_setaffinity(0, sizeof one, &one) == 0);
	return cpu;
}

int main(int argc, char **argv)
{
	uint64_t rounds = argc > 1 ? number(argv[1], "ROUNDS") : 4, n = 0, sum = 0, r = 1;
	static uint32_t order[PAGES];
	pthread_t server;

	if (rounds == 0 || rounds > 1000) {
		fprintf(stderr, "floor: ROUNDS must be from 1 to 1000\n");
		return 2;
	}
	int cpu = pin();
	uint64_t *took = anon(rounds * PAGES * sizeof *took);
	char *p = anon(PAGES * PAGE);
	memset(took, 1, rounds * PAGES * sizeof *took); // no faults of its own later
	page_write(constant, 0, 1);
	madvise(p, PAGES * PAGE, MADV_NOHUGEPAGE);
	fd = open_uffd();
	struct uffdio_register reg = { .range = { (uintptr_t)p, PAGES * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING };
	MUST(ioctl(fd, UFFDIO_REGISTER, &reg) == 0);
	MUST((errno = pthread_create(&server, 0, serve, 0)) == 0);

	for (uint64_t i = 0; i < PAGES; i++)
		order[i] = i;
	for (uint64_t round = 0; round < rounds; round++) {
		MUST(madvise(p, PAGES * PAGE, MADV_DONTNEED) == 0);
		for (uint64_t i = PAGES - 1; i > 0; i--) {
			uint64_t k = next_random(&r) % (i + 1), swap = order[i];
			order[i] = order[k];
			order[k] = swap;
		}
		for (uint64_t i = 0; i < PAGES; i++) {
			volatile uint64_t *word = (uint64_t *)(p + order[i] * PAGE);
			uint64_t before = now(), saw = *word;
			took[n++] = now() - before;
			if (saw != constant[0])
				die("page %u: saw %#lx", order[i], saw);
		}
	}
	qsort(took, n, sizeof *took, by_value);
	for (uint64_t i = 0; i < n; i++)
		sum += took[i];
	printf("{\"cpu\":%d,\"faults\":%lu,\"min_ns\":%lu,\"p50_ns\":%lu,\"p90_ns\":%lu,"
	       "\"p99_ns\":%lu,\"max_ns\":%lu,\"mean_ns\":%lu}\n", cpu, n, took[0], took[n / 2],
	       took[n * 9 / 10], took[n * 99 / 100], took[n - 1], sum / n);
	return 0;
}
