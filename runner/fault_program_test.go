// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// suffererSource is a program that verifies itself while bad things happen.
// Like the programs of package workload, whose header it uses, it exits with
// status 99 and a message when it sees a page that is not what it wrote.
//
//	check MIB SEED     verifies and rewrites until SIGUSR1, a line "ok N" after
//	                   each pass; a page that raises SIGBUS is named by a line
//	                   "bus ADDRESS" and left alone from then on; SIGUSR2
//	                   makes it unmap half of the memory
//	exit MIB SEED      exits with status 7 while 4 threads fault
//	exec MIB SEED N    calls exec on itself N times, while 4 threads fault
//	fork MIB SEED N    kills N children that verify and rewrite their copies,
//	                   and does the same meanwhile; the kernel writes their
//	                   ids into some page of theirs before they begin
//	brood MIB SEED     forks as many children as each line of stdin says, one
//	                   after another
//	fill MIB SEED      fills memory with what cannot be compressed, prints
//	                   "filled", verifies it when a line was read
//	lock MIB SEED      locks all that it has mapped, verifies and rewrites it,
//	                   prints "locked", unlocks it when a line was read, does
//	                   it again, prints "unlocked", and awaits another
const suffererSource = `
#define DIE_STATUS 99
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define THREADS 4

static uint64_t *base;
static uint64_t pages;
static volatile sig_atomic_t stop, halve;
static sigjmp_buf trap;
static uint64_t progress;

static uint64_t *at(uint64_t page) { return base + page * WORDS; }

static void say(const char *format, unsigned long value)
{
	char line[64];
	int n = snprintf(line, sizeof line, format, value);
	MUST(write(1, line, n) == n);
}

static void on_stop(int sig)
{
	if (sig == SIGUSR1)
		stop = 1;
	else
		halve = 1;
}

// A page of the program's own, such as the C library's, may be lost as well:
// then it dies by the signal, as any program would.
static void on_bus(int sig, siginfo_t *info, void *context)
{
	uint64_t *p = info->si_addr;
	(void)context;
	if (p < base || p >= at(pages)) {
		signal(sig, SIG_DFL);
		return;
	}
	siglongjmp(trap, 1);
}

static int check(void)
{
	// On the main stack, which stays in memory.
	volatile unsigned char lost[pages];
	volatile uint64_t i, gen, page, count = 0;
	struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
	MUST(sigaction(SIGBUS, &bus, 0) == 0);
	signal(SIGUSR1, on_stop);
	signal(SIGUSR2, on_stop);
	for (i = 0; i < pages; i++)
		lost[i] = 0;
	range_write(base, 0, pages, 1);
	for (gen = 1;; gen++) {
		step = gen % 2 ? "forward" : "scattered";
		for (i = 0; i < pages; i++) {
			page = gen % 2 || pages % 509 == 0 ? i : i * 509 % pages;
			if (lost[page])
				continue;
			if (sigsetjmp(trap, 1)) {
				lost[page] = 1;
				count++;
				say("bus %lu\n", (unsigned long)at(page));
				continue;
			}
			page_check(at(page), page, gen);
			page_write(at(page), page, gen + 1);
		}
		say("ok %lu\n", gen);
		if (halve) {
			halve = 0;
			MUST(munmap(at(pages / 2), (pages - pages / 2) * PAGE) == 0);
			pages /= 2;
			say("halved %lu\n", pages);
		}
		if (stop) {
			say("done %lu\n", count);
			return 0;
		}
	}
}

static void *fault(void *arg)
{
	uint64_t first = (uint64_t)arg * (pages / THREADS), state = seed + first;
	for (;;) {
		uint64_t page = first + next_random(&state) % (pages / THREADS);
		page_check(at(page), page, 1);
		__atomic_add_fetch(&progress, 1, __ATOMIC_RELAXED);
	}
	return 0;
}

// disturb starts threads that fault all the time, and returns when they have
// begun to.
static void disturb(void)
{
	pthread_t id;
	range_write(base, 0, pages, 1);
	for (uint64_t i = 0; i < THREADS; i++)
		MUST(pthread_create(&id, 0, fault, (void *)i) == 0);
	while (__atomic_load_n(&progress, __ATOMIC_RELAXED) < 500 + seed % 500)
		usleep(100);
}

static void child_of(uint64_t gen)
{
	for (uint64_t g = gen;; g++)
		for (uint64_t page = 0; page < pages; page++) {
			page_check(at(page), page, g);
			page_write(at(page), page, g + 1);
		}
}

// fork_id is fork, and has the kernel write the child's id for the child.
static pid_t fork_id(int *id)
{
#ifdef __aarch64__
	return syscall(SYS_clone, SIGCHLD | CLONE_CHILD_SETTID, 0, 0, 0, id);
#else
	return syscall(SYS_clone, SIGCHLD | CLONE_CHILD_SETTID, 0, 0, id, 0);
#endif
}

static int do_fork(uint64_t n)
{
	uint64_t state = seed, gen = 1;
	range_write(base, 0, pages, gen);
	for (uint64_t i = 0; i < n; i++) {
		int status;
		// Word 2 of a page may have any value.
		int *id = (int *)(at(next_random(&state) % pages) + 2);
		pid_t pid = fork_id(id);
		MUST(pid >= 0);
		if (pid == 0) {
			MUST(*(volatile int *)id == getpid());
			child_of(gen);
		}
		uint64_t some = next_random(&state) % pages;
		for (uint64_t page = 0; page < pages; page++) {
			if (page == some)
				kill(pid, SIGKILL);
			page_check(at(page), page, gen);
			page_write(at(page), page, gen + 1);
		}
		gen++;
		MUST(waitpid(pid, &status, 0) == pid);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			die("child ended with status %#x", status);
	}
	range_check(base, 0, pages, gen);
	say("forked %lu\n", n);
	return 0;
}

static int brood(void)
{
	unsigned long n;
	uint64_t state = seed;
	range_write(base, 0, pages, 1);
	say("filled %lu\n", pages);
	while (scanf("%lu", &n) == 1) {
		for (unsigned long i = 0; i < n; i++) {
			int status;
			pid_t pid = fork();
			MUST(pid >= 0);
			if (pid == 0) {
				uint64_t first = next_random(&state);
				for (uint64_t k = 0; k < 8; k++) {
					uint64_t page = (first + k * 509) % pages;
					page_check(at(page), page, 1);
					page_write(at(page), page, 2);
				}
				_exit(0);
			}
			next_random(&state);
			MUST(waitpid(pid, &status, 0) == pid);
			if (status != 0)
				die("child ended with status %#x", status);
		}
		say("born %lu\n", n);
	}
	range_check(base, 0, pages, 1);
	return 0;
}

static int fill(void)
{
	uint64_t state = seed;
	char c;
	for (uint64_t i = 0; i < pages * WORDS; i++)
		base[i] = next_random(&state);
	say("filled %lu\n", pages);
	MUST(read(0, &c, 1) >= 0);
	state = seed;
	for (uint64_t i = 0; i < pages * WORDS; i++)
		if (base[i] != next_random(&state))
			die("word %lu at %p is %#lx", i, (void *)(base + i), base[i]);
	say("verified %lu\n", pages);
	return 0;
}

static int lock(void)
{
	char line[16];
	range_write(base, 0, pages, 1);
	MUST(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0);
	range_check(base, 0, pages, 1);
	range_write(base, 0, pages, 2);
	say("locked %lu\n", pages);
	MUST(fgets(line, sizeof line, stdin));
	MUST(munlockall() == 0);
	for (uint64_t gen = 2; gen < 5; gen++) {
		range_check(base, 0, pages, gen);
		range_write(base, 0, pages, gen + 1);
	}
	say("unlocked %lu\n", pages);
	MUST(fgets(line, sizeof line, stdin));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	pages = number(argv[2], "MIB") * MIB_PAGES;
	seed = number(argv[3], "SEED");
	uint64_t n = argc > 4 ? number(argv[4], "N") : 0;
	base = anon(pages * PAGE);
	step = argv[1];
	if (!strcmp(step, "check"))
		return check();
	if (!strcmp(step, "fork"))
		return do_fork(n);
	if (!strcmp(step, "brood"))
		return brood();
	if (!strcmp(step, "fill"))
		return fill();
	if (!strcmp(step, "lock"))
		return lock();
	disturb();
	if (!strcmp(step, "exit"))
		_exit(7);
	if (n == 0) {
		range_check(base, 0, pages, 1);
		_exit(0);
	}
	char left[32];
	say("exec %lu\n", n);
	snprintf(left, sizeof left, "%lu", n - 1);
	execl("/proc/self/exe", argv[0], argv[1], argv[2], argv[3], left, (char *)0);
	die("exec");
}
`

var suffererOnce = sync.OnceValues(func() (string, error) {
	source := filepath.Join(runtest.Dir, "sufferer.c")
	if err := os.WriteFile(source, []byte(suffererSource), 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(runtest.Dir, "sufferer")
	out, err := exec.Command("cc", "-O2", "-Wall", "-Wextra", "-pthread",
		"-I", "../internal/workload/csrc", "-o", path, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile: %w\n%s", err, out)
	}
	return path, nil
})

// sufferer returns the path of the program of suffererSource.
func sufferer(t *testing.T) string {
	t.Helper()
	_, err := exec.LookPath("cc")
	testutil.Need(t, err == nil, workload.ErrNoCompiler.Error())
	path, err := suffererOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
