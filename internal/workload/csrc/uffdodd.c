// SPDX-License-Identifier: Apache-2.0
//
// Uses of userfaultfd(2) that are out of the ordinary. Each names what it is
// about, checks itself, and ends with status 0 if all was right.
//
//	uffdodd forkread    a child waits long in a read of its parent's descriptor
//	uffdodd forkpoll    a child polls a descriptor that had no handshake
//	uffdodd malformed   requests for ranges that cannot be
//	uffdodd vector      a system call whose vector lies in a missing page
//	uffdodd hole        a hole in a file whose memory is registered
//	uffdodd holes       holes are made while threads fault
//	uffdodd unwatched   what is dropped and moved while nobody has the memory
//	uffdodd leave       threads fault in memory that is being given up
//	uffdodd signal      a real bad access reaches the program's own handler
//	uffdodd table       a process serves faults of another whose descriptors are
//	                    its own, too
//	uffdodd many        the same for many faults, none of which waits for more
//	                    than its page
//	uffdodd vdso        memory of the kernel's own cannot be registered
//	uffdodd taken       a process takes the descriptor of another, and serves
//	uffdodd bereft      a process reads the memory of another, which dies
//	uffdodd argument    the argument of a request is missing memory itself

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

// UFFDIO_MOVE, which older headers lack.
struct move {
	unsigned long dst, src, len, mode;
	long move;
};
#define MOVE _IOWR(UFFDIO, 5, struct move)

static int fd;
static char *source;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

#define CHECK(ok)                                                     \
	do {                                                          \
		if (!(ok)) {                                          \
			fprintf(stderr, "line %d: %s (errno %d)\n",   \
				__LINE__, #ok, errno);                \
			exit(1);                                      \
		}                                                     \
	} while (0)

static char *map(size_t n, int prot)
{
	char *p = mmap(NULL, n, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void open_uffd(int handshake)
{
	fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		die("userfaultfd");
	struct uffdio_api api = {.api = UFFD_API};
	if (handshake && ioctl(fd, UFFDIO_API, &api))
		die("UFFDIO_API");
}

static void watch(void *p, size_t n)
{
	struct uffdio_register r = {.range = {(unsigned long)p, n}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(fd, UFFDIO_REGISTER, &r))
		die("UFFDIO_REGISTER");
}

static volatile unsigned long served;

// serve answers every fault with a page of 7s.
static void *serve(void *unused)
{
	for (;;) {
		struct uffd_msg m;
		if (read(fd, &m, sizeof m) != sizeof m)
			return unused;
		__atomic_add_fetch(&served, 1, __ATOMIC_SEQ_CST);
		struct uffdio_copy c = {.dst = m.arg.pagefault.address & ~(PAGE - 1ul), .src = (unsigned long)source, .len = PAGE};
		if (ioctl(fd, UFFDIO_COPY, &c) && errno != EEXIST && errno != ENOENT)
			die("UFFDIO_COPY");
		struct uffdio_range r = {c.dst, PAGE};
		ioctl(fd, UFFDIO_WAKE, &r);
	}
}

static void serving(void)
{
	pthread_t t;
	if (pthread_create(&t, NULL, serve, NULL))
		die("pthread_create");
}

static void forkread(void)
{
	open_uffd(1);
	int ready[2];
	CHECK(!pipe(ready));
	pid_t child = fork();
	if (child == 0) {
		struct uffd_msg m;
		char c = 1;
		CHECK(write(ready[1], &c, 1) == 1);
		CHECK(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
		struct uffdio_copy y = {.dst = m.arg.pagefault.address, .src = (unsigned long)source, .len = PAGE};
		CHECK(!ioctl(fd, UFFDIO_COPY, &y));
		_exit(0);
	}
	char c;
	CHECK(read(ready[0], &c, 1) == 1);
	usleep(200000); // longer than a reader is kept from the kernel
	char *p = map(PAGE, PROT_READ | PROT_WRITE);
	watch(p, PAGE);
	CHECK(p[9] == 7);
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void forkpoll(void)
{
	open_uffd(0);
	pid_t child = fork();
	if (child == 0) {
		struct pollfd p = {fd, POLLIN, 0};
		CHECK(poll(&p, 1, -1) == 1 && p.revents == POLLERR);
		_exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void malformed(void)
{
	open_uffd(1);
	char *p = map(2 * PAGE, PROT_READ | PROT_WRITE);
	watch(p, 2 * PAGE);
	for (int shift = 30; shift < 56; shift++) {
		unsigned long n = 1ul << shift;
		struct move m = {.dst = (unsigned long)p, .src = (unsigned long)source, .len = n};
		CHECK(ioctl(fd, MOVE, &m) == -1 && errno == EINVAL);
		struct uffdio_register r = {.range = {n, n}, .mode = UFFDIO_REGISTER_MODE_MISSING};
		CHECK(ioctl(fd, UFFDIO_REGISTER, &r) == -1 && errno != ENOMEM);
		struct uffdio_zeropage z = {.range = {(unsigned long)p, n}};
		CHECK(ioctl(fd, UFFDIO_ZEROPAGE, &z) == -1);
	}
}

static void vector(void)
{
	open_uffd(1);
	serving();
	char *p = map(2 * PAGE, PROT_READ | PROT_WRITE);
	struct iovec *v = (struct iovec *)source;
	v[0] = (struct iovec){p + PAGE, 16};
	watch(p, 2 * PAGE);
	int out[2];
	CHECK(!pipe(out));
	// The handler's page is the vector, for the first page and the second.
	CHECK(writev(out[1], (struct iovec *)p, 1) == 16);
	char got[16];
	CHECK(read(out[0], got, 16) == 16 && !memcmp(got, source, 16));
	CHECK(served == 2);
}

static void hole(void)
{
	int m = memfd_create("hole", 0);
	CHECK(m >= 0 && !ftruncate(m, 4 * PAGE));
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m, 0);
	CHECK(p != MAP_FAILED);
	open_uffd(1);
	serving();
	watch(p, 4 * PAGE);
	CHECK(p[0] == 7 && p[PAGE] == 7 && served == 2);
	CHECK(!fallocate(m, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE));
	CHECK(p[PAGE] == 7 && served == 3);
	CHECK(p[0] == 7 && served == 3);
	CHECK(!ftruncate(m, PAGE) && !ftruncate(m, 4 * PAGE));
	CHECK(p[PAGE] == 7 && served == 4);
}

static char *volatile region;
static int stop;

static void *touch(void *unused)
{
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
		for (int i = 0; i < 64; i++) {
			char c = *(volatile char *)(region + i * PAGE);
			CHECK(c == 7 || c == 0);
		}
	}
	return unused;
}

static void leave(void)
{
	open_uffd(1);
	serving();
	region = map(64 * PAGE, PROT_READ | PROT_WRITE);
	pthread_t t[4];
	watch(region, 64 * PAGE);
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], NULL, touch, NULL));
	for (int i = 0; i < 300; i++) {
		struct uffdio_range r = {(unsigned long)region, 64 * PAGE};
		CHECK(!madvise(region, 64 * PAGE, MADV_DONTNEED));
		CHECK(!ioctl(fd, UFFDIO_UNREGISTER, &r));
		CHECK(!madvise(region, 64 * PAGE, MADV_DONTNEED));
		watch(region, 64 * PAGE);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

static void *seven(void *unused)
{
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST))
		for (int i = 0; i < 2; i++)
			CHECK(*(volatile char *)(region + i * PAGE) == 7);
	return unused;
}

static void holes(void)
{
	int m = memfd_create("holes", 0);
	CHECK(m >= 0 && !ftruncate(m, 2 * PAGE));
	region = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m, 0);
	CHECK(region != MAP_FAILED);
	open_uffd(1);
	serving();
	watch(region, 2 * PAGE);
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], NULL, seven, NULL));
	for (int i = 0; i < 2000; i++)
		CHECK(!fallocate(m, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, i % 2 * PAGE, PAGE));
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

// POISON, which older headers lack.
#define POISON _IOWR(UFFDIO, 8, struct uffdio_zeropage)

static void unwatched(void)
{
	region = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(region != MAP_FAILED);
	open_uffd(1);
	serving();
	watch(region, 8 * PAGE);
	for (int i = 0; i < 8; i++)
		CHECK(region[i * PAGE] == 7);
	struct uffdio_range r = {(unsigned long)region, 8 * PAGE};
	CHECK(!ioctl(fd, UFFDIO_UNREGISTER, &r));
	// Nobody is told of this, and the page is asked for all the same.
	CHECK(!madvise(region + PAGE, PAGE, MADV_REMOVE));
	watch(region, 8 * PAGE);
	CHECK(served == 8 && region[PAGE] == 7 && served == 9);
	// Poison outlasts the registration, and what becomes of its neighbours.
	CHECK(!madvise(region + 2 * PAGE, PAGE, MADV_REMOVE));
	struct uffdio_zeropage z = {.range = {(unsigned long)region + 2 * PAGE, PAGE}};
	CHECK(!ioctl(fd, POISON, &z));
	CHECK(!ioctl(fd, UFFDIO_UNREGISTER, &r));
	char *to = map(PAGE, PROT_NONE);
	CHECK(mremap(region, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	CHECK(to[0] == 7 && region[PAGE] == 7);
	int out[2];
	CHECK(!pipe(out));
	CHECK(write(out[1], region + 2 * PAGE, 1) == -1 && errno == EFAULT);
	CHECK(region[3 * PAGE] == 7 && served == 9);
}

static sigjmp_buf back;
static void *volatile bad;
static volatile int code;

static void caught(int sig, siginfo_t *si, void *context)
{
	(void)sig;
	(void)context;
	bad = si->si_addr;
	code = si->si_code;
	siglongjmp(back, 1);
}

static void signals(void)
{
	struct sigaction a = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
	CHECK(!sigaction(SIGSEGV, &a, NULL));
	open_uffd(1);
	serving();
	char *p = map(2 * PAGE, PROT_READ | PROT_WRITE), *closed = map(PAGE, PROT_NONE);
	watch(p, 2 * PAGE);
	for (int i = 0; i < 3; i++) {
		bad = NULL;
		if (!sigsetjmp(back, 1))
			*(volatile char *)closed = 1;
		CHECK(bad == closed && code == SEGV_ACCERR);
	}
	// A thread that blocks the signal faults all the same, and costs nobody
	// the handler.
	sigset_t all;
	sigfillset(&all);
	CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	CHECK(p[3] == 7);
	sigset_t now;
	CHECK(!pthread_sigmask(SIG_SETMASK, NULL, &now) && sigismember(&now, SIGSEGV));
	sigemptyset(&all);
	CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	struct sigaction is;
	CHECK(!sigaction(SIGSEGV, NULL, &is) && is.sa_sigaction == caught);
	CHECK(p[PAGE] == 7 && served == 2);
}

static int sharer(void *unused)
{
	// Until the parent has made it.
	while (__atomic_load_n(&fd, __ATOMIC_ACQUIRE) <= 0)
		;
	struct uffd_msg m;
	CHECK(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
	struct uffdio_copy c = {.dst = m.arg.pagefault.address, .src = (unsigned long)source, .len = PAGE};
	CHECK(!ioctl(fd, UFFDIO_COPY, &c));
	_exit(unused != NULL);
}

static void table(void)
{
	char *stack = map(16 * PAGE, PROT_READ | PROT_WRITE);
	pid_t child = clone(sharer, stack + 16 * PAGE, CLONE_VM | CLONE_FILES | SIGCHLD, NULL);
	CHECK(child > 0);
	char *p = map(PAGE, PROT_READ | PROT_WRITE);
	int mine = syscall(SYS_userfaultfd, O_CLOEXEC);
	CHECK(mine > 0);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register r = {.range = {(unsigned long)p, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	CHECK(!ioctl(mine, UFFDIO_API, &api) && !ioctl(mine, UFFDIO_REGISTER, &r));
	__atomic_store_n(&fd, mine, __ATOMIC_RELEASE);
	CHECK(p[5] == 7);
	int st;
	CHECK(waitpid(child, &st, 0) == child && st == 0);
}

enum { MANY = 1000 };

static int server(void *unused)
{
	(void)unused;
	while (__atomic_load_n(&fd, __ATOMIC_ACQUIRE) == 0)
		sched_yield();
	for (int i = 0; i < MANY; i++) {
		struct uffd_msg m;
		CHECK(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
		struct uffdio_copy c = {.dst = m.arg.pagefault.address & ~(PAGE - 1ul), .src = (unsigned long)source, .len = PAGE};
		CHECK(!ioctl(fd, UFFDIO_COPY, &c));
	}
	_exit(0);
}

static void many(void)
{
	char *stack = map(16 * PAGE, PROT_READ | PROT_WRITE);
	char *p = map(MANY * PAGE, PROT_READ | PROT_WRITE);
	int mine = syscall(SYS_userfaultfd, O_CLOEXEC);
	CHECK(mine > 0);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register r = {.range = {(unsigned long)p, MANY * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	CHECK(!ioctl(mine, UFFDIO_API, &api) && !ioctl(mine, UFFDIO_REGISTER, &r));
	pid_t child = clone(server, stack + 16 * PAGE, CLONE_VM | CLONE_FILES | SIGCHLD, NULL);
	CHECK(child > 0);
	__atomic_store_n(&fd, mine, __ATOMIC_RELEASE);
	for (int i = 0; i < MANY; i++)
		CHECK(p[i * PAGE + 5] == 7);
	int st;
	CHECK(waitpid(child, &st, 0) == child && st == 0);
}

static void vdso(void)
{
	open_uffd(1);
	FILE *f = fopen("/proc/self/maps", "r");
	CHECK(f != NULL);
	char line[512];
	int n = 0;
	while (fgets(line, sizeof line, f)) {
		unsigned long from, to;
		if (strstr(line, "[v") == NULL || sscanf(line, "%lx-%lx", &from, &to) != 2)
			continue;
		struct uffdio_register r = {.range = {from, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
		CHECK(ioctl(fd, UFFDIO_REGISTER, &r) == -1 && errno == EINVAL);
		n++;
	}
	fclose(f);
	CHECK(n > 0);
}

static void taken(void)
{
	int go[2];
	CHECK(!pipe(go));
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); // where Yama forbids it
	pid_t parent = getpid(), child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		int number;
		CHECK(read(go[0], &number, sizeof number) == sizeof number);
		int p = syscall(SYS_pidfd_open, parent, 0);
		CHECK(p >= 0);
		fd = syscall(SYS_pidfd_getfd, p, number, 0);
		CHECK(fd >= 0);
		struct uffd_msg m;
		CHECK(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
		struct uffdio_copy c = {.dst = m.arg.pagefault.address, .src = (unsigned long)source, .len = PAGE};
		CHECK(!ioctl(fd, UFFDIO_COPY, &c));
		_exit(0);
	}
	open_uffd(1);
	char *p = map(PAGE, PROT_READ | PROT_WRITE);
	watch(p, PAGE);
	CHECK(write(go[1], &fd, sizeof fd) == sizeof fd);
	CHECK(p[5] == 7);
	int st;
	CHECK(waitpid(child, &st, 0) == child && st == 0);
}

// On the kernel the memory stays as long as somebody reads it.
static void bereft(void)
{
	static char *at;
	int told[2], st;
	CHECK(!pipe(told));
	at = map(PAGE, PROT_READ | PROT_WRITE);
	pid_t owner = fork();
	CHECK(owner >= 0);
	if (owner == 0) {
		open_uffd(1);
		watch(at, PAGE);
		CHECK(write(told[1], &fd, sizeof fd) == sizeof fd);
		for (;;)
			pause();
	}
	int number, p = syscall(SYS_pidfd_open, owner, 0);
	CHECK(p >= 0 && read(told[0], &number, sizeof number) == sizeof number);
	fd = syscall(SYS_pidfd_getfd, p, number, 0);
	CHECK(fd >= 0);
	pid_t reader = fork();
	CHECK(reader >= 0);
	if (reader == 0) {
		char b;
		struct iovec to = {&b, 1}, from = {at, 1};
		_exit(process_vm_readv(owner, &to, 1, &from, 1, 0) == 1 && b == 7 ? 7 : 8);
	}
	struct uffd_msg m;
	CHECK(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
	CHECK(!kill(owner, SIGKILL) && waitpid(owner, &st, 0) == owner);
	struct uffdio_copy c = {.dst = (unsigned long)at, .src = (unsigned long)source, .len = PAGE};
	int want = ioctl(fd, UFFDIO_COPY, &c) ? 8 : 7;
	CHECK(waitpid(reader, &st, 0) == reader && WIFEXITED(st) && WEXITSTATUS(st) == want);
}

static unsigned long flags;

static void *fault_flags(void *unused)
{
	struct uffd_msg m;
	CHECK(read(fd, &m, sizeof m) == sizeof m);
	flags = m.arg.pagefault.flags;
	struct uffdio_zeropage z = {.range = {m.arg.pagefault.address & ~(PAGE - 1ul), PAGE}};
	CHECK(!ioctl(fd, UFFDIO_ZEROPAGE, &z));
	return unused;
}

static void argument(void)
{
	open_uffd(1);
	char *p = map(2 * PAGE, PROT_READ | PROT_WRITE);
	watch(p, 2 * PAGE);
	pthread_t t;
	CHECK(!pthread_create(&t, NULL, fault_flags, NULL));
	// It is read first: zeros, which are no range.
	CHECK(ioctl(fd, UFFDIO_ZEROPAGE, p) == -1 && errno == EINVAL);
	pthread_join(t, NULL);
	CHECK(flags == 0);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} all[] = {{"forkread", forkread}, {"forkpoll", forkpoll}, {"malformed", malformed}, {"vector", vector},
		   {"hole", hole}, {"holes", holes}, {"unwatched", unwatched}, {"leave", leave}, {"signal", signals}, {"table", table}, {"many", many},
		   {"vdso", vdso}, {"taken", taken}, {"bereft", bereft}, {"argument", argument}};
	source = map(PAGE, PROT_READ | PROT_WRITE);
	memset(source, 7, PAGE);
	for (size_t i = 0; argc == 2 && i < sizeof all / sizeof *all; i++)
		if (!strcmp(argv[1], all[i].name)) {
			all[i].run();
			return 0;
		}
	return 2;
}
