// SPDX-License-Identifier: Apache-2.0
//
// Everything that userfaultfd(2) has, once: each mode of each request, each event,
// each way to read. It prints what comes of it, the same on every run and every
// kernel of 6.18 or later, and ends with status 1 where it cannot go on.
//
//	uffdwalk    as root, or where the call is allowed to the process

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

typedef uint64_t u64;
enum { PAGE = 4096 };

// Numbers of the interface, which older headers lack in part.
enum { MISSING = 1, WP = 2, MINOR = 4 };
enum { F_FORK = 1 << 1, F_REMAP = 1 << 2, F_REMOVE = 1 << 3, F_UNMAP = 1 << 6, F_SIGBUS = 1 << 7, F_TID = 1 << 8,
       F_EXACT = 1 << 11, F_UNPOPULATED = 1 << 13, F_ASYNC = 1 << 15 };
struct msg {
	unsigned char event, pad[7];
	u64 a, b, c;
};

static char *base; // of the memory that is spoken of

static void die(const char *what)
{
	perror(what);
	exit(1);
}

// off makes an address of what is the same on every run.
static long off(u64 a) { return (long)(a - (u64)base); }

static int request(int fd, int nr, int size, u64 *w)
{
	unsigned dir = nr == 1 || nr == 2 ? 2u : 3u; // UNREGISTER and WAKE only read
	if (ioctl(fd, dir << 30 | (unsigned)size << 16 | 0xaa00 | (unsigned)nr, w) == 0)
		return 0;
	return errno;
}

static int open_uffd(u64 features)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	u64 api[3] = {0xaa, features, 0};
	if (fd < 0)
		die("userfaultfd");
	if (request(fd, 0x3f, 24, api))
		die("UFFDIO_API");
	if (!features)
		printf("features %llx, requests %llx\n", (unsigned long long)api[1], (unsigned long long)api[2]);
	return fd;
}

static void watch(int fd, char *p, u64 n, u64 mode)
{
	u64 w[4] = {(u64)p, n, mode, 0};
	int e = request(fd, 0, 32, w);
	printf("register %ld+%ld mode %ld: %d, requests %llx\n", off(w[0]), (long)n / PAGE, (long)mode, e, (unsigned long long)w[3]);
}

// Requests about n pages at p.
static void range(int fd, const char *name, int nr, char *p, u64 n)
{
	u64 w[2] = {(u64)p, n * PAGE};
	printf("%s %ld+%ld: %d\n", name, off(w[0]), (long)n, request(fd, nr, 16, w));
}

static void fill(int fd, const char *name, int nr, char *p, u64 n, u64 mode)
{
	u64 w[4] = {(u64)p, n * PAGE, mode, 77};
	int e = request(fd, nr, nr == 6 ? 24 : 32, w);
	printf("%s %ld+%ld mode %ld: %d, %ld\n", name, off(w[0]), (long)n, (long)mode, e, nr == 6 ? 0 : (long)w[3]);
}

static void from(int fd, const char *name, int nr, char *p, char *src, u64 n, u64 mode)
{
	u64 w[5] = {(u64)p, (u64)src, n * PAGE, mode, 77};
	int e = request(fd, nr, 40, w);
	printf("%s %ld+%ld mode %ld: %d, %ld\n", name, off(w[0]), (long)n, (long)mode, e, (long)w[4]);
}

#define COPY(fd, p, n, mode) from(fd, "copy", 3, p, source, n, mode)
#define MOVE(fd, p, src, n, mode) from(fd, "move", 5, p, src, n, mode)
#define ZERO(fd, p, n, mode) fill(fd, "zeropage", 4, p, n, mode)
#define PROTECT(fd, p, n, mode) fill(fd, "writeprotect", 6, p, n, mode)
#define CONTINUE(fd, p, n, mode) fill(fd, "continue", 7, p, n, mode)
#define POISON(fd, p, n, mode) fill(fd, "poison", 8, p, n, mode)

static char *source;

static void show(const struct msg *m)
{
	switch (m->event) {
	case 0x12:
		printf("  fault at %ld, flags %ld, thread %s\n", off(m->b), (long)m->a, (uint32_t)m->c ? "told" : "not told");
		break;
	case 0x13:
		printf("  fork\n");
		break;
	case 0x14:
		printf("  remap %ld to %ld, %ld\n", off(m->a), off(m->b), (long)m->c);
		break;
	default:
		printf("  %s %ld to %ld\n", m->event == 0x15 ? "remove" : m->event == 0x16 ? "unmap" : "?", off(m->a), off(m->b));
	}
}

static struct msg next(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	struct msg m;
	if (poll(&p, 1, 20000) != 1 || p.revents != POLLIN)
		die("poll");
	if (read(fd, &m, sizeof m) != sizeof m)
		die("read");
	show(&m);
	return m;
}

static void quiet(int fd)
{
	struct msg m;
	if (read(fd, &m, sizeof m) >= 0 || errno != EAGAIN)
		die("a message too many");
}

// The other thread does what waits.
enum job { LOAD, STORE, UNMAP, REMAP, DONTNEED, FORK };
static struct {
	pthread_t th;
	enum job job;
	char *p, *to;
	u64 n;
	long result;
} other;
static sigjmp_buf after;

static void fatal(int sig)
{
	siglongjmp(after, sig);
}

static void *work(void *x)
{
	(void)x;
	int sig = sigsetjmp(after, 1);
	if (sig) {
		other.result = -sig;
		return NULL;
	}
	switch (other.job) {
	case LOAD:
		other.result = *(volatile char *)other.p;
		break;
	case STORE:
		*(volatile char *)other.p = 's';
		other.result = 0;
		break;
	case UNMAP:
		other.result = munmap(other.p, other.n);
		break;
	case REMAP:
		other.result = mremap(other.p, other.n, other.n, MREMAP_MAYMOVE | MREMAP_FIXED, other.to) == other.to;
		break;
	case DONTNEED:
		other.result = madvise(other.p, other.n, MADV_DONTNEED);
		break;
	case FORK:
		other.result = fork();
		if (other.result == 0)
			_exit(*(volatile char *)other.p);
		break;
	}
	return NULL;
}

static void begin(enum job job, char *p, u64 n, char *to)
{
	other.job = job, other.p = p, other.n = n, other.to = to;
	if (pthread_create(&other.th, NULL, work, NULL))
		die("pthread_create");
}

static void ended(const char *what)
{
	if (pthread_join(other.th, NULL))
		die("pthread_join");
	printf("  %s: %ld\n", what, other.result);
}

static char *map(int n, int memfd, int flags)
{
	char *p = mmap(NULL, (size_t)n * PAGE, PROT_READ | PROT_WRITE, flags | (memfd < 0 ? MAP_ANONYMOUS : 0), memfd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static int shared(int n)
{
	int memfd = memfd_create("walk", MFD_CLOEXEC);
	if (memfd < 0 || ftruncate(memfd, (off_t)n * PAGE))
		die("memfd_create");
	return memfd;
}

// missing and protected are what every kind of memory has.
static void missing(const char *name, int memfd, int flags)
{
	printf("= %s\n", name);
	int fd = open_uffd(F_TID | F_EXACT | F_UNPOPULATED);
	char *p = base = map(8, memfd, flags);
	watch(fd, p, 8 * PAGE, MISSING | WP);
	begin(LOAD, p + 5, 0, NULL);
	next(fd);
	COPY(fd, p, 1, 0);
	COPY(fd, p, 1, 0);
	ended("load");
	begin(STORE, p + PAGE + 9, 0, NULL);
	next(fd);
	ZERO(fd, p + PAGE, 1, 0);
	ended("store");
	begin(LOAD, p + 2 * PAGE, 0, NULL);
	next(fd);
	COPY(fd, p + 2 * PAGE, 1, 1); // without waking
	range(fd, "wake", 2, p + 2 * PAGE, 1);
	ended("load");
	COPY(fd, p + 3 * PAGE, 1, 2); // protected
	begin(STORE, p + 3 * PAGE, 0, NULL);
	next(fd);
	PROTECT(fd, p + 3 * PAGE, 1, 0);
	ended("store");
	PROTECT(fd, p, 1, 1);
	begin(STORE, p, 0, NULL);
	next(fd);
	PROTECT(fd, p, 1, 2); // without waking
	range(fd, "wake", 2, p, 1);
	ended("store");
	POISON(fd, p + 4 * PAGE, 1, 0);
	begin(LOAD, p + 4 * PAGE, 0, NULL);
	ended("load of poison");
	begin(LOAD, p + 5 * PAGE, 0, NULL);
	next(fd);
	POISON(fd, p + 5 * PAGE, 1, 1);
	range(fd, "wake", 2, p + 5 * PAGE, 1);
	ended("load of poison");
	COPY(fd, p + 6 * PAGE, 4, 0);
	quiet(fd);
	range(fd, "unregister", 1, p, 8);
	begin(LOAD, p + 7 * PAGE, 0, NULL);
	ended("load of what is nobody's");
	close(fd);
}

static void minor(void)
{
	printf("= minor\n");
	int memfd = shared(4), fd = open_uffd(F_TID);
	char *p = base = map(4, memfd, MAP_SHARED), *also = map(4, memfd, MAP_SHARED);
	watch(fd, p, 4 * PAGE, MINOR | WP);
	memset(also, 'm', 3 * PAGE);
	begin(LOAD, p, 0, NULL);
	next(fd);
	also[0] = 'n';
	CONTINUE(fd, p, 1, 0);
	ended("load");
	CONTINUE(fd, p + PAGE, 1, 2); // protected
	begin(STORE, p + PAGE, 0, NULL);
	next(fd);
	PROTECT(fd, p + PAGE, 1, 0);
	ended("store");
	begin(LOAD, p + 2 * PAGE, 0, NULL);
	next(fd);
	CONTINUE(fd, p + 2 * PAGE, 1, 1);
	range(fd, "wake", 2, p + 2 * PAGE, 1);
	ended("load");
	CONTINUE(fd, p + 3 * PAGE, 1, 0);
	quiet(fd);
	close(fd);
}

static void moves(void)
{
	printf("= move\n");
	int fd = open_uffd(F_TID);
	char *p = base = map(4, -1, MAP_PRIVATE), *src = map(4, -1, MAP_PRIVATE);
	memset(src, 'v', 2 * PAGE);
	src[3 * PAGE] = 'w';
	watch(fd, p, 4 * PAGE, MISSING);
	begin(LOAD, p, 0, NULL);
	next(fd);
	MOVE(fd, p, src, 1, 0);
	ended("load");
	MOVE(fd, p + PAGE, src + PAGE, 3, 0);
	MOVE(fd, p + 2 * PAGE, src + 2 * PAGE, 2, 2); // holes are allowed
	printf("  moved %c %c, left %d %d\n", p[PAGE], p[3 * PAGE], src[0], src[3 * PAGE]);
	close(fd);
}

static void events(void)
{
	printf("= events\n");
	int fd = open_uffd(F_FORK | F_REMAP | F_REMOVE | F_UNMAP);
	char *p = base = map(16, -1, MAP_PRIVATE);
	munmap(p + 4 * PAGE, 12 * PAGE);
	watch(fd, p, 4 * PAGE, MISSING);
	COPY(fd, p, 2, 0);
	begin(FORK, p, 0, NULL);
	struct msg m = next(fd);
	int child = (int)m.a, status;
	pthread_join(other.th, NULL);
	waitpid((pid_t)other.result, &status, 0);
	printf("  the child has seen %c\n", WEXITSTATUS(status));
	begin(FORK, p + 3 * PAGE, 0, NULL);
	m = next(fd);
	close(child);
	child = (int)m.a;
	next(child);
	COPY(child, p + 3 * PAGE, 1, 0);
	pthread_join(other.th, NULL);
	waitpid((pid_t)other.result, &status, 0);
	printf("  the child has seen %c\n", WEXITSTATUS(status));
	close(child);
	begin(DONTNEED, p, PAGE, NULL);
	next(fd);
	ended("madvise");
	begin(LOAD, p, 0, NULL);
	next(fd);
	COPY(fd, p, 1, 0);
	ended("load");
	begin(REMAP, p + PAGE, 3 * PAGE, p + 8 * PAGE);
	next(fd);
	next(fd); // that it is no longer where it was
	ended("mremap");
	begin(LOAD, p + 9 * PAGE, 0, NULL);
	next(fd);
	ZERO(fd, p + 9 * PAGE, 1, 0);
	ended("load");
	begin(UNMAP, p + 8 * PAGE, PAGE, NULL);
	next(fd);
	ended("munmap");
	quiet(fd);
	close(fd);
}

static void sigbus(void)
{
	printf("= sigbus\n");
	int fd = open_uffd(F_SIGBUS);
	char *p = base = map(1, -1, MAP_PRIVATE);
	watch(fd, p, PAGE, MISSING);
	begin(LOAD, p, 0, NULL);
	ended("load");
	quiet(fd);
	COPY(fd, p, 1, 0);
	begin(LOAD, p, 0, NULL);
	ended("load");
	close(fd);
}

static void async(void)
{
	printf("= asynchronous\n");
	int fd = open_uffd(F_ASYNC | F_UNPOPULATED), pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char *p = base = map(4, -1, MAP_PRIVATE);
	watch(fd, p, 4 * PAGE, WP);
	for (int round = 0; round < 2; round++) {
		u64 vec[3 * 4] = {0};
		// struct pm_scan_arg: protect what was written, and say what that is.
		u64 w[12] = {96, 3, (u64)p, (u64)p + 4 * PAGE, 0, (u64)vec, 4, 0, 0, 2, 0, 2};
		int n = ioctl(pagemap, 0xc0606610, w);
		if (n < 0)
			die("PAGEMAP_SCAN");
		for (int i = 0; i < n; i++)
			printf("  written %ld to %ld\n", off(vec[3 * i]), off(vec[3 * i + 1]));
		p[PAGE] = 'w';
	}
	quiet(fd);
	close(pagemap);
	close(fd);
}

static void reads(void)
{
	printf("= reads\n");
	int fd = open_uffd(F_TID);
	char *p = base = map(4, -1, MAP_PRIVATE);
	watch(fd, p, 4 * PAGE, MISSING);
	fcntl(fd, F_SETFL, 0);
	struct pollfd blocking = {.fd = fd, .events = POLLIN};
	printf("  poll where reads block: %d, %d\n", poll(&blocking, 1, 0), blocking.revents);
	struct msg m[2];
	begin(LOAD, p, 0, NULL);
	printf("  read: %zd\n", read(fd, m, sizeof m));
	show(&m[0]);
	COPY(fd, p, 1, 0);
	ended("load");
	struct iovec v[2] = {{m, 8}, {(char *)m + 8, sizeof m[0] - 8}};
	begin(LOAD, p + PAGE, 0, NULL);
	printf("  readv: %zd\n", readv(fd, v, 2));
	show(&m[0]);
	COPY(fd, p + PAGE, 1, 0);
	ended("load");
	fcntl(fd, F_SETFL, O_NONBLOCK);
	quiet(fd);
	close(fd);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGBUS, fatal);
	source = map(4, -1, MAP_PRIVATE);
	memset(source, 'c', 4 * PAGE);
	close(open_uffd(0));
	missing("private", -1, MAP_PRIVATE);
	missing("shared", shared(8), MAP_SHARED);
	missing("private, of a file", shared(8), MAP_PRIVATE);
	minor();
	moves();
	events();
	sigbus();
	async();
	reads();
	return 0;
}
