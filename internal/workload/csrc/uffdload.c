// SPDX-License-Identifier: Apache-2.0
//
// Does what programs do to descriptors, processes and signals while its threads
// fault in memory that it serves itself by userfaultfd(2).
//
//	uffdload descriptors SECONDS  closes, duplicates and passes descriptors
//	uffdload processes SECONDS    makes processes and threads, and lets them end
//	uffdload signals SECONDS      timers and signals, on a stack of their own
//	uffdload forever              the load alone, after a line that says so
//	uffdload wedge KIND           nobody serves, after a line that says so; every
//	                              thread waits: for a page in user mode (user) or in a
//	                              system call (call), for a message (read), for an
//	                              event to be read (event), or for one of those (all)
//	uffdload handled KIND         the same, with a handler of SIGTERM that exits
//
// It ends with status 0 if all was right.

#define DIE_STATUS 1
#include "check.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

enum { PAGES = 64, TOUCHERS = 3 };

static int fd;
static char *region, *source;
static int stop;
static uint64_t served, touched;
static pthread_t touchers[TOUCHERS];

static int stopped(void) { return __atomic_load_n(&stop, __ATOMIC_RELAXED); }

static int open_uffd(int flags, uint64_t features)
{
	int f = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);
	MUST(f >= 0);
	struct uffdio_api api = {UFFD_API, features, 0};
	MUST(ioctl(f, UFFDIO_API, &api) == 0);
	return f;
}

static void watch(int f, void *p, uint64_t n)
{
	struct uffdio_register r = {{(uint64_t)p, n}, UFFDIO_REGISTER_MODE_MISSING, 0};
	MUST(ioctl(f, UFFDIO_REGISTER, &r) == 0);
}

// serve answers every fault with a page of 7s. It has all signals blocked from its
// start on: a handler that faults there would wait for itself.
static void *serve(void *unused)
{
	for (;;) {
		struct uffd_msg m;
		ssize_t n = read(fd, &m, sizeof m);
		if (n < 0 && errno == EINTR)
			continue;
		MUST(n == sizeof m);
		struct uffdio_copy c = {m.arg.pagefault.address & -PAGE, (uint64_t)source, PAGE, 0, 0};
		struct uffdio_range r = {c.dst, PAGE};
		MUST(ioctl(fd, UFFDIO_COPY, &c) == 0 || errno == EEXIST || errno == EAGAIN);
		MUST(ioctl(fd, UFFDIO_WAKE, &r) == 0);
		__atomic_add_fetch(&served, 1, __ATOMIC_RELAXED);
	}
	return unused;
}

static void touch_one(uint64_t *random)
{
	char c = *(volatile char *)(region + next_random(random) % (PAGES * PAGE));
	if (c != 7)
		die("a page has %d", c);
	__atomic_add_fetch(&touched, 1, __ATOMIC_RELAXED);
}

static void *toucher(void *arg)
{
	uint64_t random = (uint64_t)arg;
	while (!stopped())
		touch_one(&random);
	return NULL;
}

static void *dropper(void *unused)
{
	uint64_t random = 77;
	while (!stopped())
		MUST(madvise(region + next_random(&random) % PAGES * PAGE, PAGE, MADV_DONTNEED) == 0);
	return unused;
}

static pthread_t start(void *(*f)(void *), uint64_t arg)
{
	pthread_t t;
	MUST(pthread_create(&t, NULL, f, (void *)arg) == 0);
	return t;
}

static pthread_t dropping;

static void load(void)
{
	region = anon(PAGES * PAGE);
	fd = open_uffd(0, 0);
	watch(fd, region, PAGES * PAGE);
	sigset_t all, before;
	sigfillset(&all);
	MUST(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
	start(serve, 0);
	MUST(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
	for (uint64_t i = 0; i < TOUCHERS; i++)
		touchers[i] = start(toucher, i + 1);
	dropping = start(dropper, 0);
}

static void unload(void)
{
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < TOUCHERS; i++)
		pthread_join(touchers[i], NULL);
	pthread_join(dropping, NULL);
	if (served == 0 || touched == 0)
		die("%lu faults were served, %lu pages touched", served, touched);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

// --- descriptors ------------------------------------------------------------

static void send_fd(int s, int f)
{
	char c = 0;
	struct iovec v = {&c, 1};
	union {
		struct cmsghdr h;
		char b[CMSG_SPACE(sizeof(int))];
	} u = {.h = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	memcpy(CMSG_DATA(&u.h), &f, sizeof f);
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u.b};
	MUST(sendmsg(s, &m, 0) == 1);
}

static int recv_fd(int s)
{
	char c;
	struct iovec v = {&c, 1};
	union {
		struct cmsghdr h;
		char b[CMSG_SPACE(sizeof(int))];
	} u;
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u.b};
	MUST(recvmsg(s, &m, MSG_CMSG_CLOEXEC) == 1);
	int f;
	memcpy(&f, CMSG_DATA(&u.h), sizeof f);
	return f;
}

static void check_fd(int f)
{
	struct uffdio_range r = {(uint64_t)region, PAGE};
	MUST(ioctl(f, UFFDIO_WAKE, &r) == 0);
}

static char *other;
static int other_fd;

// wait_other faults in memory whose descriptor is closed meanwhile: it has a page
// that somebody gave, or one of zeros.
static void *wait_other(void *arg)
{
	char c = *(volatile char *)(other + (uint64_t)arg * PAGE);
	if (c != 0 && c != 7)
		die("a page of a descriptor that was closed has %d", c);
	return NULL;
}

// close_under closes the last number of a descriptor under threads that wait.
static void close_under(void)
{
	other = anon(4 * PAGE);
	other_fd = open_uffd(O_NONBLOCK, 0);
	watch(other_fd, other, 4 * PAGE);
	pthread_t t[4];
	for (uint64_t i = 0; i < 4; i++)
		t[i] = start(wait_other, i);
	struct pollfd p = {other_fd, POLLIN, 0};
	MUST(poll(&p, 1, -1) == 1);
	struct uffd_msg m;
	MUST(read(other_fd, &m, sizeof m) == sizeof m);
	struct uffdio_copy c = {m.arg.pagefault.address & -PAGE, (uint64_t)source, PAGE, 0, 0};
	MUST(ioctl(other_fd, UFFDIO_COPY, &c) == 0);
	MUST(close(other_fd) == 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	MUST(munmap(other, 4 * PAGE) == 0);
}

// serve_in_child has another process answer what it gets the descriptor for.
static void serve_in_child(int to, int from)
{
	char *p = anon(PAGE);
	int f = open_uffd(0, 0);
	watch(f, p, PAGE);
	send_fd(to, f);
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		f = recv_fd(from);
		struct uffd_msg m;
		MUST(read(f, &m, sizeof m) == sizeof m);
		struct uffdio_copy c = {m.arg.pagefault.address & -PAGE, (uint64_t)source, PAGE, 0, 0};
		MUST(ioctl(f, UFFDIO_COPY, &c) == 0);
		_exit(0);
	}
	MUST(*(volatile char *)p == 7);
	int status;
	MUST(waitpid(child, &status, 0) == child && status == 0);
	MUST(close(f) == 0 && munmap(p, PAGE) == 0);
}

static void descriptors(double until)
{
	int s[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
	while (now() < until) {
		int a = dup(fd), b = fcntl(fd, F_DUPFD_CLOEXEC, 100);
		MUST(a >= 0 && b >= 100);
		check_fd(a);
		check_fd(b);
		MUST(dup2(a, 200) == 200 && dup3(b, 200, O_CLOEXEC) == 200);
		check_fd(200);
		send_fd(s[0], a);
		MUST(close(a) == 0);
		int c = recv_fd(s[1]);
		check_fd(c);
		MUST(close(b) == 0 && close(c) == 0 && close(200) == 0);
		struct uffdio_range r = {(uint64_t)region, PAGE};
		MUST(ioctl(200, UFFDIO_WAKE, &r) == -1 && errno == EBADF);
		close_under();
		serve_in_child(s[0], s[1]);
	}
}

// --- processes --------------------------------------------------------------

extern char **environ;

static void processes(double until)
{
	static uint64_t random = 5; // not in a frame that vfork returns to twice
	while (now() < until) {
		pid_t child = fork();
		MUST(child >= 0);
		if (child == 0) {
			// Its memory is nobody's: what was there, or zeros.
			for (int i = 0; i < PAGES; i++) {
				char c = *(volatile char *)(region + i * PAGE);
				MUST(c == 7 || c == 0);
				*(volatile char *)(region + i * PAGE) = 9;
			}
			_exit(0);
		}
		int status;
		MUST(waitpid(child, &status, 0) == child && status == 0);
		MUST((child = vfork()) >= 0);
		if (child == 0) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		MUST(waitpid(child, &status, 0) == child && status == 0);
		char *args[] = {"true", NULL};
		MUST(posix_spawn(&child, "/bin/true", NULL, NULL, args, environ) == 0);
		MUST(waitpid(child, &status, 0) == child && status == 0);
		pthread_t t[4];
		other = region;
		for (uint64_t i = 0; i < 4; i++)
			t[i] = start(wait_other, i);
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		touch_one(&random);
	}
}

// --- signals ----------------------------------------------------------------

static uint64_t handled;

static void touches(int sig)
{
	int saved = errno;
	uint64_t random = handled + (uint64_t)sig;
	touch_one(&random);
	__atomic_add_fetch(&handled, 1, __ATOMIC_RELAXED);
	errno = saved;
}

static void handler(int sig, int flags)
{
	struct sigaction a = {.sa_handler = touches, .sa_flags = flags};
	MUST(sigaction(sig, &a, NULL) == 0);
}

// on_stack is a toucher with a stack for signals.
static void *on_stack(void *arg)
{
	static char stacks[TOUCHERS][1 << 16];
	stack_t s = {.ss_sp = stacks[(uint64_t)arg], .ss_size = sizeof stacks[0]};
	MUST(sigaltstack(&s, NULL) == 0);
	return toucher(arg);
}

static void signals(double until)
{
	handler(SIGALRM, SA_RESTART | SA_ONSTACK);
	handler(SIGUSR1, SA_ONSTACK);
	handler(SIGUSR2, SA_RESTART | SA_NODEFER);
	pthread_t t[TOUCHERS];
	for (uint64_t i = 0; i < TOUCHERS; i++)
		t[i] = start(on_stack, i);
	struct itimerval every = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
	MUST(setitimer(ITIMER_REAL, &every, NULL) == 0);
	int p[2];
	MUST(pipe(p) == 0);
	while (now() < until) {
		for (int i = 0; i < TOUCHERS; i++) {
			pthread_kill(t[i], SIGUSR1);
			pthread_kill(touchers[i], SIGUSR2);
		}
		// A system call that a signal may end, from and to such memory.
		ssize_t n;
		while ((n = write(p[1], region, 64)) < 0)
			MUST(errno == EINTR);
		MUST(n == 64);
		while ((n = read(p[0], region + PAGE, 64)) < 0)
			MUST(errno == EINTR);
		MUST(n == 64);
	}
	MUST(setitimer(ITIMER_REAL, &never, NULL) == 0);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < TOUCHERS; i++)
		pthread_join(t[i], NULL);
	if (handled == 0)
		die("no signal was handled");
}

// --- waiting for nobody -------------------------------------------------------

static const char *kind;

static int is(const char *k) { return !strcmp(kind, k) || !strcmp(kind, "all"); }

static void *wait_user(void *arg)
{
	*(volatile char *)(region + (uint64_t)arg * PAGE) = 1;
	return NULL;
}

static void *wait_call(void *arg)
{
	int zero = open("/dev/zero", O_RDONLY);
	MUST(read(zero, region + (uint64_t)arg * PAGE, 8) != 8);
	return NULL;
}

static void *wait_read(void *arg)
{
	int f = open_uffd(0, 0);
	struct uffd_msg m;
	MUST(read(f, &m, sizeof m) != sizeof m);
	return arg;
}

static void *wait_event(void *arg)
{
	char *p = anon(PAGE);
	int f = open_uffd(0, UFFD_FEATURE_EVENT_UNMAP);
	watch(f, p, PAGE);
	munmap(p, PAGE);
	return arg;
}

static void exits(int sig)
{
	(void)sig;
	_exit(7);
}

static void wedge(int handles)
{
	if (handles)
		signal(SIGTERM, exits);
	region = anon(PAGES * PAGE);
	fd = open_uffd(0, 0);
	watch(fd, region, PAGES * PAGE);
	if (is("user"))
		start(wait_user, 1);
	if (is("call"))
		start(wait_call, 2);
	if (is("read"))
		start(wait_read, 0);
	if (is("event"))
		start(wait_event, 0);
	printf("ready %d\n", getpid());
	fflush(stdout);
	if (is("user"))
		wait_user((void *)3);
	else if (is("call"))
		wait_call((void *)4);
	else if (is("read"))
		wait_read(NULL);
	else
		wait_event(NULL);
	die("nothing was waited for");
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	step = argv[1];
	source = anon(PAGE);
	memset(source, 7, PAGE);
	if (argc == 3 && (!strcmp(step, "wedge") || !strcmp(step, "handled"))) {
		kind = argv[2];
		wedge(!strcmp(step, "handled"));
	}
	load();
	if (!strcmp(step, "forever")) {
		printf("ready %d\n", getpid());
		fflush(stdout);
		for (;;)
			pause();
	}
	if (argc != 3)
		return 2;
	double until = now() + (double)number(argv[2], "SECONDS");
	if (!strcmp(step, "descriptors"))
		descriptors(until);
	else if (!strcmp(step, "processes"))
		processes(until);
	else if (!strcmp(step, "signals"))
		signals(until);
	else
		return 2;
	unload();
	return 0;
}
