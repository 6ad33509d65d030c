// SPDX-License-Identifier: Apache-2.0
//
// The program that the tests inject system calls into. It checks itself: it
// prints "ok" at the end, or what it has seen that it should not.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif

#define CHECK(c) do { if (!(c)) { printf("line %d: %s (errno %d)\n", __LINE__, #c, errno); exit(9); } } while (0)

static volatile sig_atomic_t handled;
static volatile int go;

static void count(int sig) { (void)sig; handled++; }

static void on(int sig, int flags) {
	struct sigaction sa = {.sa_handler = count, .sa_flags = flags};
	CHECK(sigaction(sig, &sa, NULL) == 0);
}

static int64_t now(void) {
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void block(int sig) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, sig);
	CHECK(sigprocmask(SIG_BLOCK, &s, NULL) == 0);
}

static void ready(void) { CHECK(write(1, "ready\n", 6) == 6); }

// The waits. Each returns what it natively returns; the tests inject while
// they sleep.
static void w_nanosleep(void) {
	struct timespec ts = {0, 300000000}, rem;
	int64_t t = now();
	CHECK(nanosleep(&ts, &rem) == 0);
	t = now() - t;
	CHECK(t >= 300000000);
}
static void w_futex(void) {
	int word = 1;
	struct timespec ts = {0, 300000000};
	int64_t t = now();
	CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 1, &ts, NULL, 0) == -1 && errno == ETIMEDOUT);
	CHECK(now() - t >= 300000000);
}
static void w_poll(void) {
	int64_t t = now();
	CHECK(poll(NULL, 0, 300) == 0);
	CHECK(now() - t >= 300000000);
}
static void w_read(void) {
	char b[16];
	CHECK(read(0, b, sizeof b) == 3 && memcmp(b, "go\n", 3) == 0);
}
static void w_epoll(void) {
	int e = epoll_create1(0);
	struct epoll_event ev = {.events = EPOLLIN}, got;
	CHECK(epoll_ctl(e, EPOLL_CTL_ADD, 0, &ev) == 0);
	CHECK(epoll_wait(e, &got, 1, -1) == 1);
}
static void w_wait4(void) {
	pid_t p = fork();
	if (p == 0) {
		char b;
		_exit(read(0, &b, 1) == 1 ? 5 : 6);
	}
	ready(); // not before the fork, which a tracer would be told of
	int st;
	CHECK(wait4(-1, &st, 0, NULL) == p && WIFEXITED(st) && WEXITSTATUS(st) == 5);
}
// A signal with a handler comes during the injection: EINTR, as without it.
static void w_pause(void) {
	on(SIGUSR1, SA_RESTART);
	CHECK(pause() == -1 && errno == EINTR && handled == 1);
}
static void w_sigsuspend(void) {
	on(SIGUSR1, SA_RESTART);
	block(SIGUSR1);
	sigset_t none;
	sigemptyset(&none);
	CHECK(sigsuspend(&none) == -1 && errno == EINTR && handled == 1);
	sigset_t cur;
	sigprocmask(SIG_BLOCK, NULL, &cur);
	CHECK(sigismember(&cur, SIGUSR1));
}
static void w_ppoll(void) {
	on(SIGUSR1, SA_RESTART);
	block(SIGUSR1);
	sigset_t none;
	sigemptyset(&none);
	CHECK(ppoll(NULL, 0, NULL, &none) == -1 && errno == EINTR && handled == 1);
}
static void w_epoll_pwait(void) {
	on(SIGUSR1, SA_RESTART);
	block(SIGUSR1);
	sigset_t none;
	sigemptyset(&none);
	struct epoll_event got;
	CHECK(epoll_pwait(epoll_create1(0), &got, 1, -1, &none) == -1 && errno == EINTR && handled == 1);
}
static void w_semop(void) {
	int id = semget(IPC_PRIVATE, 1, 0600);
	struct sembuf op = {0, -1, 0};
	struct timespec ts = {0, 300000000};
	int r = semtimedop(id, &op, 1, &ts), e = errno;
	semctl(id, 0, IPC_RMID);
	errno = e;
	CHECK(r == -1 && errno == EAGAIN);
}
// With SA_RESTART a read is restarted after the handler, without it is not.
static void w_read_restart(void) {
	on(SIGUSR1, SA_RESTART);
	w_read();
	CHECK(handled == 1);
}
static void w_read_eintr(void) {
	on(SIGUSR1, 0);
	char b;
	CHECK(read(0, &b, 1) == -1 && errno == EINTR && handled == 1);
}

static const struct { const char *name; void (*f)(void); } waits[] = {
	{"nanosleep", w_nanosleep}, {"futex", w_futex}, {"poll", w_poll}, {"read", w_read},
	{"epoll", w_epoll}, {"wait4", w_wait4}, {"pause", w_pause}, {"sigsuspend", w_sigsuspend},
	{"ppoll", w_ppoll}, {"epoll_pwait", w_epoll_pwait}, {"semop", w_semop},
	{"read_restart", w_read_restart}, {"read_eintr", w_read_eintr},
};

// registers spins with known values in the vector and general registers until
// go is set from outside, and compares.
static void registers(void) {
#ifdef __x86_64__
	static uint8_t in[16][16], out[16][16];
	static uint64_t g[8];
	for (int i = 0; i < 256; i++)
		((uint8_t *)in)[i] = i * 7 + 3;
	__asm__ volatile(
		"movdqu 0(%0),%%xmm0\n movdqu 16(%0),%%xmm1\n movdqu 32(%0),%%xmm2\n movdqu 48(%0),%%xmm3\n"
		"movdqu 64(%0),%%xmm4\n movdqu 80(%0),%%xmm5\n movdqu 96(%0),%%xmm6\n movdqu 112(%0),%%xmm7\n"
		"movdqu 128(%0),%%xmm8\n movdqu 144(%0),%%xmm9\n movdqu 160(%0),%%xmm10\n movdqu 176(%0),%%xmm11\n"
		"movdqu 192(%0),%%xmm12\n movdqu 208(%0),%%xmm13\n movdqu 224(%0),%%xmm14\n movdqu 240(%0),%%xmm15\n"
		"mov $0x1111,%%rax\n mov $0x2222,%%rcx\n mov $0x3333,%%rdx\n mov $0x4444,%%r8\n"
		"mov $0x5555,%%r9\n mov $0x6666,%%r10\n mov $0x7777,%%r11\n mov $0x8888,%%r12\n"
		"1: pause\n cmpl $0,%3\n je 1b\n"
		"mov %%rax,0(%2)\n mov %%rcx,8(%2)\n mov %%rdx,16(%2)\n mov %%r8,24(%2)\n"
		"mov %%r9,32(%2)\n mov %%r10,40(%2)\n mov %%r11,48(%2)\n mov %%r12,56(%2)\n"
		"movdqu %%xmm0,0(%1)\n movdqu %%xmm1,16(%1)\n movdqu %%xmm2,32(%1)\n movdqu %%xmm3,48(%1)\n"
		"movdqu %%xmm4,64(%1)\n movdqu %%xmm5,80(%1)\n movdqu %%xmm6,96(%1)\n movdqu %%xmm7,112(%1)\n"
		"movdqu %%xmm8,128(%1)\n movdqu %%xmm9,144(%1)\n movdqu %%xmm10,160(%1)\n movdqu %%xmm11,176(%1)\n"
		"movdqu %%xmm12,192(%1)\n movdqu %%xmm13,208(%1)\n movdqu %%xmm14,224(%1)\n movdqu %%xmm15,240(%1)\n"
		: : "S"(in), "D"(out), "b"(g), "m"(go)
		: "memory", "cc", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12",
		"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
		"xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	CHECK(memcmp(in, out, sizeof in) == 0);
	for (int i = 0; i < 8; i++)
		CHECK(g[i] == 0x1111u * (i + 1));
#else
	double x = 1.5;
	while (!go)
		x = x * 1.0;
	CHECK(x == 1.5);
#endif
}

// sequence spins inside a restartable sequence, which it enters again when it
// is aborted. It returns false where there is none to be had.
static volatile int aborts;
static int sequence(void) {
#if defined __x86_64__ && defined RSEQ_SIG
	if (__rseq_size == 0)
		return 0;
	struct rseq *rs = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
	ready();
	__asm__ volatile(
		".pushsection __rseq_cs, \"aw\"\n .balign 32\n"
		"3: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n .popsection\n"
		"0: lea 3b(%%rip), %%rax\n mov %%rax, %0\n"
		"1: pause\n cmpl $0, %1\n je 1b\n 2: jmp 5f\n"
		".long 0x53053053\n4: incl %2\n jmp 0b\n5:\n"
		: "=m"(rs->rseq_cs) : "m"(go), "m"(aborts) : "rax", "memory", "cc");
	return 1;
#else
	ready();
	return 0;
#endif
}

// Values that come with signals must be 0, 1, 2, ... up to the last.
#define SIGNALS 300
static void next_value(int sig, siginfo_t *si, void *uc) {
	(void)sig, (void)uc;
	CHECK(si->si_value.sival_int == handled);
	handled++;
}
static void values(void) {
	struct sigaction sa = {.sa_sigaction = next_value, .sa_flags = SA_SIGINFO | SA_RESTART};
	CHECK(sigaction(SIGRTMIN, &sa, NULL) == 0);
	ready();
	while (handled < SIGNALS) {
		struct timespec ts = {0, 100000};
		nanosleep(&ts, NULL);
	}
	CHECK(handled == SIGNALS);
}

static void *thread(void *arg) {
	for (int i = 0; i < 5; i++)
		CHECK(write(*(int *)arg, "t", 1) == 1);
	return arg;
}

static void on_info(int sig, siginfo_t *si, void *uc) {
	(void)uc;
	CHECK(si->si_code == SI_QUEUE && si->si_value.sival_int == 42 && sig == SIGRTMIN);
	handled++;
}

static sigjmp_buf *jump;
static void on_fault(int sig, siginfo_t *si, void *uc) {
	(void)uc;
	CHECK(sig == SIGSEGV && si->si_addr == (void *)0x1230 && si->si_code == SEGV_MAPERR);
	handled++;
	siglongjmp(*jump, 1);
}


// everything does a little of all that stops a traced program.
static void everything(char *self) {
	int p[2], st;
	CHECK(pipe(p) == 0);
	for (int i = 0; i < 2; i++) {
		pid_t c = fork();
		if (c == 0) {
			CHECK(write(p[1], "f", 1) == 1);
			_exit(3 + i);
		}
		CHECK(waitpid(c, &st, 0) == c && WIFEXITED(st) && WEXITSTATUS(st) == 3 + i);
	}
	CHECK(waitpid(-1, &st, 0) == -1 && errno == ECHILD);
	pid_t v = vfork();
	if (v == 0) {
		execl(self, self, "exit4", (char *)NULL);
		_exit(1);
	}
	CHECK(waitpid(v, &st, 0) == v && WIFEXITED(st) && WEXITSTATUS(st) == 4);
	pthread_t t[3];
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&t[i], NULL, thread, &p[1]) == 0);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(t[i], NULL) == 0);
	char b[64];
	CHECK(read(p[0], b, sizeof b) == 17);
	CHECK(read(p[0], b, 0) == 0);

	on(SIGUSR1, 0);
	for (int i = 0; i < 5; i++)
		raise(SIGUSR1);
	CHECK(handled == 5);
	struct sigaction sa = {.sa_sigaction = on_info, .sa_flags = SA_SIGINFO};
	CHECK(sigaction(SIGRTMIN, &sa, NULL) == 0);
	for (int i = 0; i < 3; i++)
		CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 42}) == 0);
	CHECK(handled == 8);
	sigjmp_buf env;
	jump = &env;
	sa.sa_sigaction = on_fault;
	CHECK(sigaction(SIGSEGV, &sa, NULL) == 0);
	if (sigsetjmp(env, 1) == 0)
		*(volatile char *)0x1230 = 1;
	CHECK(handled == 9);
	struct timespec ts = {0, 2000000};
	CHECK(nanosleep(&ts, NULL) == 0);
	char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m != MAP_FAILED);
	memset(m, 1, 1 << 20);
	CHECK(madvise(m, 4096, MADV_DONTFORK) == 0 && munmap(m, 1 << 20) == 0);
	void *top = sbrk(0);
	CHECK(sbrk(8192) == top && sbrk(-8192) != (void *)-1);
	CHECK(syscall(100000) == -1 && errno == ENOSYS);
	CHECK(close(p[0]) == 0 && close(p[1]) == 0);
	execl(self, self, "say", (char *)NULL);
	CHECK(0);
}

static int deny(int nr, uint32_t action) {
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {4, f};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p);
}

static void *deny_here(void *arg) {
	(void)arg;
	CHECK(deny(SYS_getppid, SECCOMP_RET_ALLOW) == 0);
	ready();
	pause();
	return NULL;
}

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IONBF, 0);
	const char *mode = argc > 1 ? argv[1] : "";
	for (unsigned i = 0; i < sizeof waits / sizeof *waits; i++)
		if (strcmp(mode, waits[i].name) == 0) {
			if (waits[i].f != w_wait4)
				ready();
			waits[i].f();
			goto ok;
		}
	if (strcmp(mode, "registers") == 0) {
		printf("%p\n", (void *)&go);
		registers();
	} else if (strcmp(mode, "rseq") == 0) {
		printf("%p\n", (void *)&go);
		if (!sequence()) {
			printf("none\n");
			pause();
		}
		CHECK(aborts > 0);
	} else if (strcmp(mode, "values") == 0) {
		values();
	} else if (strcmp(mode, "reaper") == 0) {
		char b;
		CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
		printf("0x0\n");
		CHECK(read(0, &b, 1) == 1);
		int st;
		CHECK(wait4(-1, &st, 0, NULL) == -1 && errno == ECHILD);
	} else if (strcmp(mode, "everything") == 0) {
		char b;
		ready();
		CHECK(read(0, &b, 1) == 1);
		everything(argv[0]);
	} else if (strcmp(mode, "exit4") == 0) {
		return 4;
	} else if (strcmp(mode, "say") == 0) {
	} else if (strcmp(mode, "pages") == 0) {
		// Some memory to work on, then wait for a line; children must be none.
		char b, *m = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (int i = 0; i < 64; i++)
			memset(m + i * 4096, i + 1, 4096);
		printf("%p\n", (void *)m);
		CHECK(read(0, &b, 1) == 1);
		int st;
		CHECK(wait4(-1, &st, WNOHANG, NULL) == -1 && errno == ECHILD);
		CHECK(wait4(-1, &st, WNOHANG | __WALL, NULL) == -1 && errno == ECHILD);
		if (fork() == 0)
			_exit(0);
		CHECK(wait(&st) > 0 && st == 0 && wait(&st) == -1 && errno == ECHILD);
	} else if (strcmp(mode, "trap") == 0 || strcmp(mode, "eperm") == 0) {
		on(SIGSYS, 0);
		CHECK(deny(mode[0] == 't' ? SYS_getppid : SYS_clone,
			mode[0] == 't' ? SECCOMP_RET_TRAP : SECCOMP_RET_ERRNO | EPERM) == 0);
		ready();
		char b;
		CHECK(read(0, &b, 1) == 1 && handled == 0);
		if (mode[0] == 't') {
			getppid();
			CHECK(handled == 1);
		}
	} else if (strcmp(mode, "diverged") == 0) {
		pthread_t t;
		CHECK(pthread_create(&t, NULL, deny_here, NULL) == 0);
		pause();
	} else if (strcmp(mode, "strict") == 0) {
		ready();
		CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
		char b;
		syscall(SYS_exit, read(0, &b, 1) == 1 ? 0 : 1);
	} else {
		printf("unknown mode %s\n", mode);
		return 9;
	}
ok:
	CHECK(write(1, "ok\n", 3) == 3);
	return 0;
}
