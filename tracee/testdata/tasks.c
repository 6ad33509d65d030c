// SPDX-License-Identifier: Apache-2.0

// Makes tasks in every way that there is. Prints "ok" and exits with 0 if
// all behave.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define check(c) do { if (!(c)) { fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #c, errno); exit(99); } } while (0)

static int ended(pid_t pid, int flags)
{
	int st;
	check(waitpid(pid, &st, flags) == pid);
	check(WIFEXITED(st));
	return WEXITSTATUS(st);
}

static void forks(int n)
{
	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		check(pid >= 0);
		if (!pid)
			_exit(i & 0x7f);
		check(ended(pid, 0) == (i & 0x7f));
	}
}

// many keeps up to 50 children alive at once.
static void many(int n)
{
	int live = 0, st;
	for (int i = 0; i < n; i++) {
		if (live == 50) {
			check(wait(&st) > 0);
			live--;
		}
		pid_t pid = fork();
		check(pid >= 0);
		if (!pid)
			_exit(0);
		live++;
	}
	while (live-- > 0)
		check(wait(&st) > 0);
	check(wait(&st) < 0 && errno == ECHILD);
}

static void vforks(void)
{
	volatile int shared = 0;
	pid_t pid = vfork();
	if (!pid) {
		shared = 7;
		_exit(5);
	}
	check(shared == 7 && ended(pid, 0) == 5);
	pid = vfork();
	if (!pid) {
		execl("/bin/sh", "sh", "-c", "exit 6", (char *)NULL);
		_exit(127);
	}
	check(ended(pid, 0) == 6);
}

static void spawns(void)
{
	char *argv[] = {"sh", "-c", "exit 8", NULL};
	pid_t pid;
	check(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, environ) == 0);
	check(ended(pid, 0) == 8);
	check(posix_spawn(&pid, "/does/not/exist", NULL, NULL, argv, environ) == ENOENT);
}

static int odd_child(void *arg)
{
	return *(int *)arg;
}

static void clones(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	int v = 11, none = 0;
	// Exit signals other than SIGCHLD, and shared memory without vfork.
	signal(SIGUSR1, SIG_IGN);
	pid_t pid = clone(odd_child, stack + sizeof stack, SIGUSR1, &v);
	check(pid > 0 && ended(pid, __WALL) == 11);
	pid = clone(odd_child, stack + sizeof stack, 0, &v);
	check(pid > 0 && ended(pid, __WALL) == 11);
	pid = clone(odd_child, stack + sizeof stack, CLONE_VM | SIGCHLD, &v);
	check(pid > 0 && ended(pid, 0) == 11);
	pid = clone(odd_child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &v);
	check(pid > 0 && ended(pid, 0) == 11);
	// CLONE_VFORK with a copy of the memory: a vfork event, and no sharing.
	pid = syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		none = 1;
		_exit(0);
	}
	check(pid > 0 && ended(pid, 0) == 0 && none == 0);

	struct clone_args a = {.exit_signal = SIGCHLD, .flags = CLONE_CLEAR_SIGHAND};
	pid = syscall(SYS_clone3, &a, sizeof a);
	if (!pid)
		_exit(12);
	check(pid > 0 && ended(pid, 0) == 12);

	// A child of our parent, who must reap it: run in a process of its own.
	check(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	pid = fork();
	if (!pid) {
		struct clone_args b = {.flags = CLONE_PARENT};
		pid = syscall(SYS_clone3, &b, sizeof b);
		if (!pid)
			_exit(13);
		_exit(pid > 0 ? 0 : 1);
	}
	check(ended(pid, 0) == 0);
	int st;
	check(wait(&st) > 0 && WEXITSTATUS(st) == 13);
}

static void *brief(void *arg)
{
	return arg;
}

static pthread_barrier_t barrier;

static void *meet(void *arg)
{
	pthread_barrier_wait(&barrier);
	return arg;
}

static void threads(int n)
{
	pthread_t t[n];
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	pthread_barrier_init(&barrier, NULL, n + 1);
	for (int i = 0; i < n; i++)
		check(pthread_create(&t[i], &attr, meet, &t[i]) == 0);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < n; i++) {
		void *r;
		check(pthread_join(t[i], &r) == 0 && r == &t[i]);
	}
	for (int i = 0; i < n; i++) {
		check(pthread_create(&t[0], &attr, brief, NULL) == 0);
		check(pthread_join(t[0], NULL) == 0);
	}
}

static void *forever(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static char *self;

static void *exec_here(void *arg)
{
	execl(self, self, "nothing", (char *)NULL);
	_exit(98);
	return arg;
}

// exec_thread calls exec from a thread that is not the leader, among others.
static void exec_thread(int leader_gone)
{
	pid_t pid = fork();
	if (!pid) {
		pthread_t t;
		for (int i = 0; i < 5; i++)
			pthread_create(&t, NULL, forever, NULL);
		pthread_create(&t, NULL, exec_here, NULL);
		if (leader_gone)
			syscall(SYS_exit, 3);
		for (;;)
			pause();
	}
	check(ended(pid, 0) == 42);
}

static void *late(void *arg)
{
	usleep(20000);
	exit(21);
	return arg;
}

static void leader_first(void)
{
	pid_t pid = fork();
	if (!pid) {
		pthread_t t;
		pthread_create(&t, NULL, late, NULL);
		syscall(SYS_exit, 1);
	}
	check(ended(pid, 0) == 21);
}

// killed children, at all moments: while they fork, start threads and exec.
static void killed(void)
{
	for (int i = 0; i < 60; i++) {
		pid_t pid = fork();
		if (!pid) {
			for (;;) {
				pthread_t t;
				pthread_create(&t, NULL, brief, NULL);
				pid_t p = vfork();
				if (!p) {
					execl(self, self, "nothing", (char *)NULL);
					_exit(1);
				}
				waitpid(p, NULL, 0);
				pthread_join(t, NULL);
			}
		}
		usleep(137 * i);
		check(kill(pid, SIGKILL) == 0);
		int st;
		check(waitpid(pid, &st, 0) == pid && WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

// stops: a parent sees its child stop and continue, threads and all.
static void stops(void)
{
	pid_t pid = fork();
	if (!pid) {
		pthread_t t;
		for (int i = 0; i < 3; i++)
			pthread_create(&t, NULL, forever, NULL);
		raise(SIGSTOP);
		_exit(33);
	}
	int st;
	check(waitpid(pid, &st, WUNTRACED) == pid && WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP);
	check(kill(pid, SIGCONT) == 0);
	check(waitpid(pid, &st, WCONTINUED) == pid);
	if (WIFCONTINUED(st))
		check(waitpid(pid, &st, 0) == pid);
	check(WIFEXITED(st) && WEXITSTATUS(st) == 33);
}

static volatile int hits;

static void on_usr1(int sig, siginfo_t *si, void *ctx)
{
	(void)sig, (void)ctx;
	check(si->si_code == SI_QUEUE && si->si_value.sival_int == 4711 + hits);
	hits++;
}

// queued signals keep what was sent along.
static void queued(void)
{
	struct sigaction sa = {.sa_sigaction = on_usr1, .sa_flags = SA_SIGINFO};
	sigaction(SIGRTMIN + 3, &sa, NULL);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 20; i++)
		check(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 4711 + i}) == 0);
	check(hits == 0);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	check(hits == 20);
}

int main(int argc, char **argv)
{
	self = argv[0];
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "nothing"))
		return 42;
	if (!strcmp(what, "fork"))
		forks(200);
	else if (!strcmp(what, "many"))
		many(1000);
	else if (!strcmp(what, "vfork"))
		vforks();
	else if (!strcmp(what, "spawn"))
		spawns();
	else if (!strcmp(what, "clone"))
		clones();
	else if (!strcmp(what, "threads"))
		threads(200);
	else if (!strcmp(what, "exec"))
		exec_thread(0);
	else if (!strcmp(what, "execleader"))
		exec_thread(1);
	else if (!strcmp(what, "leader"))
		leader_first();
	else if (!strcmp(what, "killed"))
		killed();
	else if (!strcmp(what, "stops"))
		stops();
	else if (!strcmp(what, "queued"))
		queued();
	else
		return 125;
	puts("ok");
	return 0;
}
