// SPDX-License-Identifier: Apache-2.0

// robust MIB: threads and processes that end while they hold robust futexes which
// were not touched for long. The kernel marks each of them, going from one to the
// next in memory, or who waits for one waits for ever.
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { HELD = 40, APART = 10 * PAGE };

static char *ballast, *held;
static size_t size;
static pthread_barrier_t all_held, full;

static void fill(void)
{
	for (int round = 0; round < 4; round++)
		for (size_t i = 0; i < size; i += PAGE)
			ballast[i] = (char)(i >> 12) ^ round;
}

static pthread_mutex_t *mutex(int i) { return (pthread_mutex_t *)(held + i * APART); }

static void *holder(void *arg)
{
	for (int i = 0; i < HELD; i++)
		MUST(pthread_mutex_lock(mutex(i)) == 0);
	pthread_barrier_wait(&all_held);
	pthread_barrier_wait(&full);
	return arg;
}

// ends has a thread end that holds many.
static void ends(void)
{
	pthread_mutexattr_t robust;
	pthread_t t;
	MUST(pthread_mutexattr_init(&robust) == 0 && pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
	held = anon(HELD * APART);
	for (int i = 0; i < HELD; i++)
		MUST(pthread_mutex_init(mutex(i), &robust) == 0);
	MUST(pthread_barrier_init(&all_held, 0, 2) == 0 && pthread_barrier_init(&full, 0, 2) == 0);
	MUST(pthread_create(&t, 0, holder, 0) == 0);
	pthread_barrier_wait(&all_held);
	fill();
	pthread_barrier_wait(&full);
	MUST(pthread_join(t, 0) == 0);
	for (int i = 0; i < HELD; i++)
		if (pthread_mutex_trylock(mutex(i)) != EOWNERDEAD)
			die("nobody is told that the owner of %d has died", i);
}

struct entry { void *next; uint32_t word; };

// killed has a process end at once whose list begins in memory that was not touched
// for long, while the futex is shared.
static void killed(int by_itself)
{
	struct entry *e = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(e != MAP_FAILED);
	int status;
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		struct robust_list_head *head = anon(PAGE);
		*head = (struct robust_list_head){ { (void *)e }, offsetof(struct entry, word), 0 };
		*e = (struct entry){ head, getpid() };
		MUST(syscall(SYS_set_robust_list, head, sizeof *head) == 0);
		fill();
		if (by_itself)
			_exit(0);
		kill(getpid(), SIGKILL);
	}
	MUST(waitpid(child, &status, 0) == child);
	if (!(e->word & FUTEX_OWNER_DIED))
		die("nobody is told that the owner has %s", by_itself ? "exited" : "been killed");
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	size = strtoul(argv[1], 0, 10) << 20;
	ballast = anon(size);
	fill();
	ends();
	killed(1);
	killed(0);
	puts("ok");
	return 0;
}
