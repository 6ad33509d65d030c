// SPDX-License-Identifier: Apache-2.0

// Uses userfaultfd in the way that the first argument names, and checks what
// it gets. Exits with 0 if all is right, and with 77 if the kernel or a
// privilege is missing.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul

// What older headers do not have.
#define MOVE 0xc028aa05
#define POISON 0xc020aa08

#define check(c) do { if (!(c)) { fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #c, errno); exit(99); } } while (0)
#define fails(call, e) check((call) == -1 && errno == (e))

static char buffer[PAGE] __attribute__((aligned(4096)));

static int open_uffd(int flags, uint64_t features)
{
	int fd = syscall(SYS_userfaultfd, flags);
	if (fd == -1 && (errno == EPERM || errno == ENOSYS))
		exit(77);
	check(fd >= 0);
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	if (ioctl(fd, UFFDIO_API, &api))
		exit(77);
	return fd;
}

static char *memory(int pages)
{
	char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(p != MAP_FAILED);
	return p;
}

static void enroll(int fd, char *p, int pages, uint64_t mode)
{
	struct uffdio_register r = {.range = {(uintptr_t)p, pages * PAGE}, .mode = mode};
	check(ioctl(fd, UFFDIO_REGISTER, &r) == 0);
}

static int copy(int fd, uint64_t dst, uint64_t mode)
{
	struct uffdio_copy c = {.dst = dst, .src = (uintptr_t)buffer, .len = PAGE, .mode = mode};
	return ioctl(fd, UFFDIO_COPY, &c);
}

static void wake(int fd, uint64_t at)
{
	struct uffdio_range r = {at, PAGE};
	check(ioctl(fd, UFFDIO_WAKE, &r) == 0);
}

// touch reads a page in a thread of its own.
static void *touch(void *p)
{
	return (void *)(intptr_t)*(volatile char *)p;
}

static void *touch_write(void *p)
{
	*(volatile char *)p = 1;
	return NULL;
}

static pthread_t start(void *(*f)(void *), void *arg)
{
	pthread_t t;
	check(pthread_create(&t, NULL, f, arg) == 0);
	return t;
}

static void join(pthread_t t)
{
	check(pthread_join(t, NULL) == 0);
}

// Every ioctl once, and some errors.
static void calls(void)
{
	int fd = open_uffd(O_CLOEXEC | UFFD_USER_MODE_ONLY, UFFD_FEATURE_THREAD_ID);
	char *p = memory(8);
	struct uffd_msg m;

	fails(syscall(SYS_userfaultfd, 1 << 20 | UFFD_USER_MODE_ONLY), EINVAL);
	enroll(fd, p, 8, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	pthread_t t = start(touch, p);
	check(read(fd, &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
	check(copy(fd, (uintptr_t)p, 0) == 0);
	join(t);
	fails(copy(fd, (uintptr_t)p, 0), EEXIST);
	fails(copy(fd, (uintptr_t)p + 1, 0), EINVAL);

	// Woken by a call of its own.
	t = start(touch, p + PAGE);
	struct iovec v[2] = {{&m, 8}, {(char *)&m + 8, sizeof m - 8}};
	check(readv(fd, v, 2) == sizeof m);
	check(copy(fd, (uintptr_t)p + PAGE, UFFDIO_COPY_MODE_DONTWAKE) == 0);
	wake(fd, (uintptr_t)p + PAGE);
	join(t);

	// A write to a protected page.
	struct uffdio_writeprotect wp = {.range = {(uintptr_t)p, PAGE}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	check(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	t = start(touch_write, p);
	check(preadv2(fd, v, 2, -1, 0) == sizeof m);
	wp.mode = 0;
	check(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	join(t);

	struct uffdio_zeropage z = {.range = {(uintptr_t)p + 2 * PAGE, 2 * PAGE}};
	check(ioctl(fd, UFFDIO_ZEROPAGE, &z) == 0 && z.zeropage == 2 * PAGE);
	z.range.start -= PAGE, z.range.len = 2 * PAGE;
	fails(ioctl(fd, UFFDIO_ZEROPAGE, &z), EEXIST);
	*p = 1;
	uint64_t move[5] = {(uintptr_t)p + 4 * PAGE, (uintptr_t)p, PAGE};
	check(ioctl(fd, MOVE, move) == 0);
	uint64_t poison[4] = {(uintptr_t)p + 5 * PAGE, PAGE};
	check(ioctl(fd, POISON, poison) == 0);
	struct uffdio_continue co = {.range = {(uintptr_t)p + 6 * PAGE, PAGE}};
	fails(ioctl(fd, UFFDIO_CONTINUE, &co), EINVAL);

	fails(ioctl(fd, UFFDIO_COPY, NULL), EFAULT);
	fails(ioctl(fd, UFFDIO_COPY, (char *)-1 - 8), EFAULT);
	fails(ioctl(fd, _IO(UFFDIO, 0x77), 5), EINVAL);
	fails(read(fd, buffer, 31), EINVAL);

	// UNREGISTER wakes, too.
	t = start(touch, p + 7 * PAGE);
	check(read(fd, &m, sizeof m) == sizeof m);
	struct uffdio_range r = {(uintptr_t)p + 7 * PAGE, PAGE};
	check(ioctl(fd, UFFDIO_UNREGISTER, &r) == 0);
	join(t);

	// Nobody wakes these: one is read, and one is not.
	start(touch, p + PAGE * 6);
	check(read(fd, &m, sizeof m) == sizeof m);
}

// Descriptors that are made in all ways, used, and closed in all ways.
static void numbers(void)
{
	int fd = open_uffd(O_NONBLOCK | UFFD_USER_MODE_ONLY, 0);
	char m[64];
	fails(read(fd, m, sizeof m), EAGAIN);
	int a = dup(fd), b = dup2(fd, 20), c = dup3(fd, 21, O_CLOEXEC), d = fcntl(fd, F_DUPFD, 30), e = fcntl(fd, F_DUPFD_CLOEXEC, 30);
	int all[] = {a, b, c, d, e};
	for (int i = 0; i < 5; i++) {
		check(all[i] > 0);
		fails(read(all[i], m, sizeof m), EAGAIN);
	}
	check(dup2(fd, fd) == fd);
	check(close(fd) == 0);
	check(dup2(0, 20) == 20);
	check(fcntl(21, F_SETFL, 0) == 0 && fcntl(21, F_SETFL, O_NONBLOCK) == 0);
	check(close_range(21, 30, 0) == 0);
	fails(read(e, m, sizeof m), EAGAIN);
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		fails(ioctl(dev, USERFAULTFD_IOC_NEW, 1 << 20), EINVAL);
		check((fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_NONBLOCK)) > 0);
		fails(read(fd, m, sizeof m), EINVAL);
		check(close(fd) == 0);
	}
	// Many, of which each has another number.
	for (int i = 0; i < 100; i++) {
		fd = open_uffd(O_NONBLOCK | UFFD_USER_MODE_ONLY, 0);
		fails(read(fd, m, sizeof m), EAGAIN);
	}
}

static void *reads(void *fd)
{
	struct uffd_msg m;
	if (read((int)(intptr_t)fd, &m, sizeof m) >= 0)
		exit(98);
	return NULL;
}

// Another program is executed in one thread, and another thread reads.
static void execs(char **argv)
{
	if (argv[2]) {
		fails(read(atoi(argv[2]), buffer, 64), EAGAIN);
		fails(copy(atoi(argv[2]), PAGE, 0), ESRCH);
		return;
	}
	int fd = open_uffd(UFFD_USER_MODE_ONLY, 0), keep = open_uffd(UFFD_USER_MODE_ONLY | O_NONBLOCK, 0);
	check(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0);
	start(reads, (void *)(intptr_t)fd);
	usleep(20000); // whether it reads by then does not matter
	char number[12];
	sprintf(number, "%d", keep);
	execl("/proc/self/exe", argv[0], argv[1], number, NULL);
	check(0);
}

// Ends with a thread in a read.
static void killed(void)
{
	int fd = open_uffd(UFFD_USER_MODE_ONLY, 0);
	start(reads, (void *)(intptr_t)fd);
	usleep(20000);
	raise(SIGKILL);
}

static void *serve_one(void *arg)
{
	int fd = (int)(intptr_t)arg;
	struct uffd_msg m;
	check(read(fd, &m, sizeof m) == sizeof m);
	check(copy(fd, m.arg.pagefault.address, 0) == 0);
	return NULL;
}

// The argument of an ioctl lies on a page that is missing itself.
static void argument(void)
{
	int fd = open_uffd(O_CLOEXEC, 0);
	char *p = memory(2);
	enroll(fd, p, 2, UFFDIO_REGISTER_MODE_MISSING);
	*(struct uffdio_range *)buffer = (struct uffdio_range){(uintptr_t)p + PAGE, PAGE};
	pthread_t t = start(serve_one, (void *)(intptr_t)fd);
	check(ioctl(fd, UFFDIO_WAKE, p) == 0);
	join(t);
}

static void send_fd(int sock, int fd)
{
	char c = 'x', space[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec v = {&c, 1};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
	struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
	cm->cmsg_level = SOL_SOCKET, cm->cmsg_type = SCM_RIGHTS, cm->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(cm), &fd, sizeof fd);
	check(sendmsg(sock, &h, 0) == 1);
}

static int recv_fd(int sock)
{
	char c, space[CMSG_SPACE(sizeof(int))];
	struct iovec v = {&c, 1};
	struct mmsghdr h = {{.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space}, 0};
	// Each receiver by another call.
	if (sock & 1)
		check(recvmsg(sock, &h.msg_hdr, MSG_CMSG_CLOEXEC) == 1);
	else
		check(recvmmsg(sock, &h, 1, MSG_CMSG_CLOEXEC, NULL) == 1);
	check(h.msg_hdr.msg_controllen >= CMSG_LEN(sizeof(int)));
	int fd;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&h.msg_hdr)), sizeof fd);
	return fd;
}

// waits receives a descriptor, sleeping in the way of its number until it comes.
static void waits(int how, int sock)
{
	if (how == 1) {
		struct epoll_event ev = {.events = EPOLLIN};
		int ep = epoll_create1(EPOLL_CLOEXEC);
		check(epoll_ctl(ep, EPOLL_CTL_ADD, sock, &ev) == 0);
		check(epoll_wait(ep, &ev, 1, -1) == 1);
	} else if (how == 2) {
		// Running all the time.
		char c;
		while (recv(sock, &c, 1, MSG_PEEK | MSG_DONTWAIT) != 1)
			;
	}
	serve_one((void *)(intptr_t)recv_fd(sock));
}

// Three children get descriptors in messages, each for one page, and serve
// the first fault.
static void sends(void)
{
	char *p[3];
	int fd[3], pair[3][2];
	pthread_t t[3];
	for (int i = 0; i < 3; i++) {
		check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair[i]) == 0);
		pid_t pid = fork();
		check(pid >= 0);
		if (!pid) {
			close(pair[i][0]);
			waits(i, pair[i][1]);
			exit(0);
		}
		close(pair[i][1]);
	}
	usleep(20000); // most will wait by then
	for (int i = 0; i < 3; i++) {
		fd[i] = open_uffd(O_CLOEXEC, 0);
		p[i] = memory(1);
		enroll(fd[i], p[i], 1, UFFDIO_REGISTER_MODE_MISSING);
		send_fd(pair[i][0], fd[i]);
		// The only one that is left is the receiver's, or under way.
		check(close(fd[i]) == 0);
		t[i] = start(touch, p[i]);
	}
	for (int i = 0; i < 3; i++) {
		int st;
		join(t[i]);
		check(wait(&st) > 0 && WIFEXITED(st) && WEXITSTATUS(st) == 0);
	}
}

static void *forks(void *unused)
{
	pid_t pid = fork();
	check(pid >= 0);
	if (!pid)
		_exit(0);
	int st;
	check(waitpid(pid, &st, 0) == pid && st == 0);
	return unused;
}

// A child whose descriptor comes in a message, and from there on.
static void forked(void)
{
	int fd = open_uffd(O_CLOEXEC, UFFD_FEATURE_EVENT_FORK);
	enroll(fd, memory(1), 1, UFFDIO_REGISTER_MODE_MISSING);
	struct uffd_msg m[2];
	pthread_t t = start(forks, NULL);
	check(read(fd, m, sizeof m) == sizeof m[0] && m[0].event == UFFD_EVENT_FORK);
	join(t);
	fails(read(m[0].arg.fork.ufd, m, 31), EINVAL);
	check(close(m[0].arg.fork.ufd) == 0);
}

// A filter of the program's own, which kills it for what we would inject. It
// sends the descriptor to a child without one.
static void filtered(void)
{
	int st, pair[2];
	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	pid_t pid = fork();
	check(pid >= 0);
	if (!pid) {
		fails(read(recv_fd(pair[1]), buffer, 64), EAGAIN);
		exit(0);
	}
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ, SYS_seccomp, 0, 1),
		BPF_STMT(BPF_RET, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {sizeof code / sizeof *code, code};
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0);
	int fd = open_uffd(UFFD_USER_MODE_ONLY | O_NONBLOCK, 0);
	fails(read(fd, buffer, 64), EAGAIN);
	check(copy(fd, PAGE, 0) == -1);
	send_fd(pair[0], fd);
	check(waitpid(pid, &st, 0) == pid && st == 0);
}

static int shared_fd;

static int sharer(void *unused)
{
	// Until the parent has made it.
	while (__atomic_load_n(&shared_fd, __ATOMIC_ACQUIRE) == 0)
		;
	for (int i = 0; i < 1000; i++)
		fails(read(shared_fd, buffer, 64), EAGAIN);
	_exit(unused != NULL);
}

// A process that shares memory and descriptors with its parent, but is another.
static void shared(void)
{
	int st;
	pid_t pid = clone(sharer, memory(16) + 16 * PAGE, CLONE_VM | CLONE_FILES | SIGCHLD, NULL);
	check(pid > 0);
	int fd = open_uffd(O_NONBLOCK | UFFD_USER_MODE_ONLY, 0);
	__atomic_store_n(&shared_fd, fd, __ATOMIC_RELEASE);
	check(waitpid(pid, &st, 0) == pid && st == 0);
}

// random_word is a number that may mean something: small, an address, a request.
static uint64_t random_word(unsigned *seed, int fd, char *p)
{
	uint64_t r = (uint64_t)rand_r(seed) << 32 ^ rand_r(seed);
	switch (r % 8) {
	case 0: return fd;
	case 1: return r % 5;
	case 2: return (uintptr_t)p + r / 8 % 8 * PAGE;
	case 3: return (uintptr_t)buffer + r / 8 % 64;
	case 4: return r / 8 % 9 * PAGE;
	case 5: return -(r / 8 % 4096);
	case 6: return (uintptr_t)p + 9 * PAGE - r / 8 % 64; // beyond the end
	}
	return r;
}

static void *random_calls(void *arg)
{
	static const unsigned long requests[] = {UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
		UFFDIO_COPY, UFFDIO_ZEROPAGE, MOVE, UFFDIO_WRITEPROTECT, UFFDIO_CONTINUE, POISON, 0xaa00, 0xaa55};
	static const int reading[] = {SYS_read, SYS_readv, SYS_preadv2, SYS_pread64};
	unsigned seed = (uintptr_t)arg;
	char *p = memory(9);
	check(munmap(p + 8 * PAGE, PAGE) == 0);
	int fd = open_uffd(O_NONBLOCK | UFFD_USER_MODE_ONLY, UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID);
	for (int i = 0; i < 400; i++) {
		uint64_t w[6], arg[5];
		for (int k = 0; k < 6; k++)
			w[k] = random_word(&seed, fd, p);
		for (int k = 0; k < 5; k++)
			arg[k] = random_word(&seed, fd, p);
		if (i % 2) { // one that may succeed
			arg[0] = (uintptr_t)p + w[0] % 8 * PAGE;
			arg[1] = (w[1] % 8 + 1) * PAGE;
			arg[2] = w[2] % 4;
		}
		int n = rand_r(&seed) % 10;
		if (n < 6)
			ioctl(fd, requests[rand_r(&seed) % 12], n < 4 ? (uint64_t)(uintptr_t)arg : w[0]);
		else if (n < 9)
			syscall(reading[rand_r(&seed) % 4], fd, w[0], w[1] % 2048, -1, -1, 0);
		else if (i % 16 == 0) {
			int other = dup(fd);
			check(close(fd) == 0);
			fd = other;
		}
	}
	close(fd);
	return NULL;
}

// Malformed calls at random, in four threads.
static void randomly(char **argv)
{
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		t[i] = start(random_calls, (void *)(uintptr_t)(atoi(argv[2]) * 4 + i));
	for (int i = 0; i < 4; i++)
		join(t[i]);
}

int main(int argc, char **argv)
{
	check(argc > 1);
	alarm(30);
	const char *what = argv[1];
	if (!strcmp(what, "calls")) calls();
	else if (!strcmp(what, "numbers")) numbers();
	else if (!strcmp(what, "execs")) execs(argv);
	else if (!strcmp(what, "killed")) killed();
	else if (!strcmp(what, "argument")) argument();
	else if (!strcmp(what, "sends")) sends();
	else if (!strcmp(what, "forked")) forked();
	else if (!strcmp(what, "filtered")) filtered();
	else if (!strcmp(what, "shared")) shared();
	else if (!strcmp(what, "random")) randomly(argv);
	else if (!strcmp(what, "nothing")) return 0;
	else check(0);
	exit(0);
}
