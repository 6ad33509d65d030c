// SPDX-License-Identifier: Apache-2.0
//
// served BALLAST_MIB SEED
//
// Registers memory with a userfaultfd of its own, as machine emulators and
// garbage collectors do: some that was just mapped, and some that has content,
// which under a bound has been pushed out by then. It verifies the contents
// before, while and after it serves them.

#include "check.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum { N = 512 }; // pages in each range: 2 MiB

#define FRESH_PAGE (1UL << 20) // the number of the first page that is served
#define OLD_PAGE (1UL << 21)

static struct ballast ballast;
static char *fresh;

static void say(const char *what)
{
	printf("ok %s\n", what);
	fflush(stdout);
	step = what;
}

static void *serve(void *arg)
{
	int fd = *(int *)arg;
	static uint64_t page[WORDS] __attribute__((aligned(4096)));
	struct uffd_msg m;
	while (read(fd, &m, sizeof m) == sizeof m) {
		MUST(m.event == UFFD_EVENT_PAGEFAULT);
		uint64_t at = m.arg.pagefault.address & ~(PAGE - 1);
		page_write(page, FRESH_PAGE + (at - (uint64_t)fresh) / PAGE, 1);
		page[2] = 0;
		struct uffdio_copy c = { .dst = at, .src = (uint64_t)page, .len = PAGE };
		MUST(ioctl(fd, UFFDIO_COPY, &c) == 0 || errno == EEXIST);
	}
	return NULL;
}

static int register_range(int fd, void *at, uint64_t pages, uint64_t mode)
{
	struct uffdio_register r = { .range = { (uint64_t)at, pages * PAGE }, .mode = mode };
	return ioctl(fd, UFFDIO_REGISTER, &r);
}

static void unregister(int fd, void *at, uint64_t pages)
{
	struct uffdio_range r = { (uint64_t)at, pages * PAGE };
	MUST(ioctl(fd, UFFDIO_UNREGISTER, &r) == 0);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: served BALLAST_MIB SEED\n");
		return 2;
	}
	seed = number(argv[2], "SEED");
	ballast_make(&ballast, number(argv[1], "BALLAST_MIB"));
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	MUST(fd >= 0);
	struct uffdio_api api = { .api = UFFD_API };
	MUST(ioctl(fd, UFFDIO_API, &api) == 0);

	char *old = anon(N * PAGE);
	range_write(old, OLD_PAGE, N, 1);
	ballast_cycle(&ballast);

	fresh = anon(N * PAGE);
	MUST(register_range(fd, fresh, N, UFFDIO_REGISTER_MODE_MISSING) == 0);
	pthread_t server;
	MUST(pthread_create(&server, NULL, serve, &fd) == 0);
	range_check(fresh, FRESH_PAGE, N, 1);
	say("fresh");

	// With content: what is there stays.
	MUST(register_range(fd, old, N / 2, UFFDIO_REGISTER_MODE_MISSING) == 0);
	range_check(old, OLD_PAGE, N, 1);
	ballast_cycle(&ballast);
	range_check(old, OLD_PAGE, N, 1);
	say("old");

	// Refused: the memory goes on as it was.
	MUST(register_range(-1, old + N / 2 * PAGE, N / 2, UFFDIO_REGISTER_MODE_MISSING) == -1 && errno == EBADF);
	ballast_cycle(&ballast);
	range_check(old, OLD_PAGE, N, 1);
	say("refused");

	unregister(fd, old, N / 2);
	for (int i = 0; i < 4; i++) {
		ballast_cycle(&ballast);
		range_check(old, OLD_PAGE, N, 1);
		range_check(fresh, FRESH_PAGE, N, 1);
	}
	say("given back");
	return 0;
}
