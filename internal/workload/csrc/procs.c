// SPDX-License-Identifier: Apache-2.0
//
// procs MIB SEED [STEP...]
//
// Makes processes and threads in every way there is while MIB of memory is
// shared, copied and rewritten on both sides, and verifies each side's copy.
//
// The step children makes 1,000 short-lived children, or as many as the
// environment's PROCS_CHILDREN says; threads makes 200.

#include "check.h"
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/auxv.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

extern char **environ;

static uint64_t *memory, pages, gen = 1;

// fill gives the shared memory its next generation.
static void fill(void) { range_write(memory, 0, pages, ++gen); }
static void check(void) { range_check(memory, 0, pages, gen); }

// reap dies unless the child ends with the wait status.
static void reap(pid_t child, int want)
{
	int status;
	pid_t got;
	do
		got = waitpid(child, &status, __WALL);
	while (got < 0 && errno == EINTR);
	if (got != child || status != want)
		die("child %s wait status %#x, want %#x", got == child ? "has" : "lost,", status, want);
}

// diverge rewrites every nth page with a generation of this process's own and
// verifies all, so that what another process writes is seen if it leaks in.
static void diverge(uint64_t from, uint64_t nth, uint64_t mine)
{
	for (uint64_t i = from; i < pages; i += nth)
		page_write(memory + i * WORDS, i, mine);
	for (uint64_t i = pages; i-- > 0;)
		page_check(memory + i * WORDS, i, i >= from && (i - from) % nth == 0 ? mine : gen);
}

// fork_early forks while memory is small, and fills it in the child: what the
// kernel holds of a thread was told to it by the parent. Nothing there uses the
// thread's own variables, beside which rseq(2)'s area is.
static void fork_early(void)
{
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		for (int round = 0; round < 4; round++) {
			fill();
			check();
		}
		_exit(0);
	}
	reap(child, 0);
}

static void fork_both_write(void)
{
	for (int round = 0; round < 3; round++) {
		fill();
		pid_t child = fork();
		MUST(child >= 0);
		if (child == 0) {
			diverge(1, 2, 1000 + round);
			_exit(7);
		}
		diverge(0, 3, 2000 + round);
		reap(child, 7 << 8);
		for (uint64_t i = 0; i < pages; i++)
			page_check(memory + i * WORDS, i, i % 3 ? gen : 2000u + round);
	}
}

static void nest(uint64_t depth)
{
	if (depth == 4)
		return;
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		for (uint64_t i = depth; i < pages; i += 5)
			page_write(memory + i * WORDS, i, 3000 + depth);
		nest(depth + 1);
		for (uint64_t i = 0; i < pages; i++)
			page_check(memory + i * WORDS, i, i % 5 <= depth ? 3000 + i % 5 : gen);
		_exit(depth);
	}
	reap(child, depth << 8);
}

static void fork_nested(void)
{
	fill();
	nest(0);
	check();
}

// Children end, are killed or exec while the parent goes on writing.
static void fork_end(void)
{
	for (int round = 0; round < 12; round++) {
		fill();
		pid_t child = fork();
		MUST(child >= 0);
		if (child == 0) {
			range_check(memory, 0, pages / 4, gen);
			if (round % 3 == 0)
				_exit(0);
			if (round % 3 == 1)
				raise(SIGKILL);
			execl("/proc/self/exe", "procs", "--exec", "4", (char *)0);
			_exit(126);
		}
		fill();
		check();
		reap(child, round % 3 == 1 ? SIGKILL : 0);
	}
}

// A parent may end before its child, which then works on alone.
static void fork_orphan(void)
{
	int ends[2];
	char byte = 0;
	fill();
	MUST(pipe(ends) == 0);
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		if (fork())
			_exit(0);
		close(ends[0]);
		diverge(0, 2, 4000);
		byte = 42;
		_exit(write(ends[1], &byte, 1) != 1);
	}
	close(ends[1]);
	reap(child, 0);
	fill();
	MUST(read(ends[0], &byte, 1) == 1 && byte == 42);
	close(ends[0]);
	check();
}

static void vfork_exec(void)
{
	for (int round = 0; round < 8; round++) {
		fill();
		volatile uint64_t mark = 0;
		pid_t child = vfork();
		MUST(child >= 0);
		if (child == 0) {
			mark = memory[1]; // the parent's own page, maybe out
			execl("/proc/self/exe", "procs", "--exec", "2", (char *)0);
			_exit(126);
		}
		if (mark != gen)
			die("vfork child saw generation %lu, want %lu", (uint64_t)mark, gen);
		reap(child, 0);
		check();
	}
}

static void spawn(void)
{
	char *args[] = { "procs", "--exec", "2", 0 };
	for (int round = 0; round < 8; round++) {
		pid_t child;
		fill();
		MUST((errno = posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) == 0);
		fill();
		reap(child, 0);
		check();
	}
}

static void clone3_fork(void)
{
	struct clone_args args = { .exit_signal = SIGCHLD };
	int fd = -1;
	fill();
	args.flags = CLONE_PIDFD;
	args.pidfd = (uintptr_t)&fd;
	long child = syscall(SYS_clone3, &args, sizeof args);
	if (child < 0 && (errno == ENOSYS || errno == EPERM)) {
		lacking("clone3");
		return;
	}
	MUST(child >= 0);
	if (child == 0) {
		diverge(0, 2, 5000);
		_exit(5);
	}
	diverge(1, 2, 6000);
	reap(child, 5 << 8);
	MUST(fd >= 0 && close(fd) == 0);
}

static int clone_vm_child(void *unused)
{
	(void)unused;
	range_check(memory, 0, pages, gen);
	range_write(memory, 0, pages, gen + 1);
	return 9;
}

// A process of its own that shares the memory: neither a thread nor a fork.
static void clone_vm(void)
{
	char *stack = anon(64 * PAGE);
	for (int signal = 0; signal <= SIGCHLD; signal += SIGCHLD) {
		fill();
		pid_t child = clone(clone_vm_child, stack + 64 * PAGE, CLONE_VM | signal, 0);
		MUST(child > 0);
		reap(child, 9 << 8);
		gen++;
		check();
	}
	MUST(munmap(stack, 64 * PAGE) == 0);
}

static void *exec_now(void *unused)
{
	(void)unused;
	execl("/proc/self/exe", "procs", "--exec", "4", (char *)0);
	return 0;
}

static void *toil(void *argument)
{
	uint64_t *page = argument;
	for (uint64_t i = 1;; i++)
		page_write(page, 1, i);
	return 0;
}

// exec from a thread that is not the first, with others at work.
static void exec_from_thread(void)
{
	fill();
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		pthread_t t[5];
		for (int i = 0; i < 4; i++)
			pthread_create(&t[i], 0, toil, memory + i * WORDS);
		range_write(memory + 8 * WORDS, 8, pages - 8, 1);
		pthread_create(&t[4], 0, exec_now, 0);
		for (;;)
			pause();
	}
	fill();
	reap(child, 0);
	check();
}

#include "procs_more.h"

// exec_main is what the exec'ed children do: verify fresh memory of their own.
static int exec_main(uint64_t mib)
{
	step = "exec";
	memory = anon(mib * MIB);
	pages = mib * MIB_PAGES;
	range_check_zero(memory, pages);
	fill();
	check();
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--exec"))
		return exec_main(number(argv[2], "MIB"));
	if (argc < 3) {
		fprintf(stderr, "usage: procs MIB SEED [STEP...]\n");
		return 2;
	}
	pages = number(argv[1], "MIB") * MIB_PAGES;
	seed = number(argv[2], "SEED");
	if (pages == 0) {
		fprintf(stderr, "procs: MIB must be positive\n");
		return 2;
	}
	memory = anon(pages * PAGE);
	return run_steps(steps, argv + 3);
}
