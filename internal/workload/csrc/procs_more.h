// SPDX-License-Identifier: Apache-2.0
//
// The steps of procs about threads, signals and many children, and its table
// of all steps.

enum { THREADS = 200, STACK_PAGES = 16 };

static pthread_barrier_t barrier;

// Each thread verifies a heap block and a part of its own stack, before and
// after all the others have touched theirs.
static void *own_pages(void *argument)
{
	uint64_t id = (uintptr_t)argument, first = 1 << 20 | id << 12;
	uint64_t heap_pages = pages / THREADS + 1;
	uint64_t stack[STACK_PAGES * WORDS];
	char *block = malloc((heap_pages + 1) * PAGE);
	MUST(block);
	uint64_t *heap = (uint64_t *)(((uintptr_t)block + PAGE - 1) & ~(PAGE - 1));

	for (uint64_t g = 1; g < 4; g++) {
		range_write(heap, first, heap_pages, g);
		range_write(stack, first + 2048, STACK_PAGES, g);
		pthread_barrier_wait(&barrier);
		range_check(heap, first, heap_pages, g);
		range_check(stack, first + 2048, STACK_PAGES, g);
	}
	free(block);
	return argument;
}

static void threads(void)
{
	static pthread_t t[THREADS];
	MUST(pthread_barrier_init(&barrier, 0, THREADS) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		MUST((errno = pthread_create(&t[i], 0, own_pages, (void *)i)) == 0);
	for (uintptr_t i = 0; i < THREADS; i++) {
		void *result;
		MUST(pthread_join(t[i], &result) == 0 && result == (void *)i);
	}
	pthread_barrier_destroy(&barrier);
}

// Threads that come and go, one after another, on recycled stacks.
static void thread_churn(void)
{
	MUST(pthread_barrier_init(&barrier, 0, 1) == 0);
	for (uintptr_t i = 0; i < 500; i++) {
		pthread_t t;
		MUST((errno = pthread_create(&t, 0, own_pages, (void *)i)) == 0);
		MUST(pthread_join(t, 0) == 0);
	}
	pthread_barrier_destroy(&barrier);
}

static void children(void)
{
	const char *text = getenv("PROCS_CHILDREN");
	uint64_t many = text ? number(text, "PROCS_CHILDREN") : 1000;
	fill();
	for (uint64_t i = 0; i < many; i++) {
		pid_t child = fork();
		MUST(child >= 0);
		if (child == 0) {
			// A few pages, spread: read one, write another.
			for (uint64_t k = 0; k < 8; k++) {
				uint64_t r = (i * 31 + k * 977) % pages, w = (r + 1) % pages;
				page_check(memory + r * WORDS, r, gen);
				page_write(memory + w * WORDS, w, gen);
			}
			if (i % 50 == 0)
				raise(SIGTERM);
			_exit(i % 100);
		}
		page_write(memory + i % pages * WORDS, i % pages, gen);
		reap(child, i % 50 ? (int)(i % 100) << 8 : SIGTERM);
	}
	check();
}

// Many children alive at a time.
static void children_together(void)
{
	enum { TOGETHER = 32 };
	pid_t child[TOGETHER];
	fill();
	for (uint64_t i = 0; i < TOGETHER; i++) {
		MUST((child[i] = fork()) >= 0);
		if (child[i] == 0) {
			for (uint64_t k = 0; k < 64; k++) {
				uint64_t r = (i * 131 + k * 37) % pages;
				page_check(memory + r * WORDS, r, gen);
				page_write(memory + r * WORDS, r, gen);
			}
			_exit(i);
		}
	}
	for (uint64_t i = TOGETHER; i-- > 0;)
		reap(child[i], i << 8);
	check();
}

static uint64_t *signal_memory;
static uint64_t signal_pages;
static volatile uint64_t handled;
static volatile sig_atomic_t jump;
static sigjmp_buf escape;

// on_signal runs on its own stack and touches memory of its own, which may be
// out, at whatever point the program is: perhaps in a fault.
static void on_signal(int number)
{
	(void)number;
	uint64_t n = handled, page = n * 7 % signal_pages, lap = n / signal_pages;
	page_check(signal_memory + page * WORDS, 1 << 21 | page, lap + 1);
	page_write(signal_memory + page * WORDS, 1 << 21 | page, lap + 2);
	handled = n + 1;
	if (jump && n % 2)
		siglongjmp(escape, 1);
}

static void storm(int jumping, uint64_t enough)
{
	char *stack = anon(16 * PAGE);
	stack_t alternate = { .ss_sp = stack, .ss_size = 16 * PAGE };
	stack_t none = { .ss_flags = SS_DISABLE };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART };
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
	volatile uint64_t i = 0;

	signal_pages = 255; // not a multiple of 7: every page has its turn
	signal_memory = anon(signal_pages * PAGE);
	range_write(signal_memory, 1 << 21, signal_pages, 1);
	fill();
	handled = 0;
	jump = jumping;
	MUST(sigaltstack(&alternate, 0) == 0 && sigaction(SIGALRM, &action, 0) == 0);
	MUST(setitimer(ITIMER_REAL, &often, 0) == 0);
	sigsetjmp(escape, 1);
	while (handled < enough) {
		i = (i + 1) % pages;
		page_check(memory + i * WORDS, i, gen);
	}
	jump = 0;
	MUST(setitimer(ITIMER_REAL, &never, 0) == 0);
	signal(SIGALRM, SIG_IGN); // and forget one that is pending
	check();
	MUST(sigaltstack(&none, 0) == 0);
	MUST(munmap(signal_memory, signal_pages * PAGE) == 0);
	MUST(munmap(stack, 16 * PAGE) == 0);
}

static void signals(void) { storm(0, 300); }
static void signals_jump(void) { storm(1, 300); }

// descend verifies each frame on the way back up.
static uint64_t __attribute__((noinline)) descend(uint64_t depth, uint64_t salt)
{
	volatile uint64_t frame[64];
	for (uint64_t i = 0; i < 64; i++)
		frame[i] = mix64(salt + depth * 64 + i);
	uint64_t below = depth ? descend(depth - 1, salt) : 0;
	for (uint64_t i = 0; i < 64; i++)
		if (frame[i] != mix64(salt + depth * 64 + i))
			die("stack frame at depth %lu, word %lu: saw %#lx", depth, i, frame[i]);
	return below + 1;
}

static void *recurse(void *argument)
{
	uint64_t salt = (uintptr_t)argument;
	for (int i = 0; i < 3; i++)
		if (descend(8000, salt) != 8001)
			die("recursion came back from the wrong depth");
	return 0;
}

// 8,001 frames of over half a KiB: most of a thread's stack, and of the main one.
static void recursion(void)
{
	pthread_t t[4];
	for (uintptr_t i = 0; i < 4; i++)
		MUST((errno = pthread_create(&t[i], 0, recurse, (void *)(i + 1))) == 0);
	recurse((void *)9);
	for (int i = 0; i < 4; i++)
		MUST(pthread_join(t[i], 0) == 0);
}

static void on_overflow(int number)
{
	(void)number;
	siglongjmp(escape, 1);
}

static uint64_t __attribute__((noinline)) bottomless(uint64_t depth)
{
	volatile uint64_t frame[128];
	frame[depth % 128] = depth;
	if (depth == UINT64_MAX) // never, but the compiler cannot know
		return 0;
	return bottomless(depth + 1) + frame[depth % 128];
}

static char overflowed[] = "overflowed";

static void *overflow(void *argument)
{
	stack_t alternate = { .ss_sp = argument, .ss_size = 16 * PAGE };
	MUST(sigaltstack(&alternate, 0) == 0);
	if (sigsetjmp(escape, 1))
		return overflowed;
	return (void *)bottomless(1);
}

// A thread runs into the guard page below its stack and recovers.
static void stack_overflow(void)
{
	struct sigaction action = { .sa_handler = on_overflow, .sa_flags = SA_ONSTACK }, old;
	void *stack = anon(16 * PAGE), *result;
	pthread_t t;
	MUST(sigaction(SIGSEGV, &action, &old) == 0);
	for (int i = 0; i < 3; i++) {
		MUST((errno = pthread_create(&t, 0, overflow, stack)) == 0);
		MUST(pthread_join(t, &result) == 0);
		if (result != overflowed)
			die("no SIGSEGV at the end of the stack");
	}
	MUST(sigaction(SIGSEGV, &old, 0) == 0);
	MUST(munmap(stack, 16 * PAGE) == 0);
}

// rseq registers memory that was not touched for long, and runs with it.
static void rseq(void)
{
	enum { SIG = 0x53053053, UNREGISTER = 1 };
	void *own = (char *)__builtin_thread_pointer() + __rseq_offset;
	struct rseq *area = anon(PAGE);
	memset(area, 0, PAGE);
	area->cpu_id = RSEQ_CPU_ID_UNINITIALIZED;
	fill();
	// What the C library has registered is as long as this, or the kernel's own.
	long n = 32;
	if (syscall(SYS_rseq, own, n, UNREGISTER, SIG) != 0) {
		n = getauxval(AT_RSEQ_FEATURE_SIZE);
		MUST(syscall(SYS_rseq, own, n, UNREGISTER, SIG) == 0);
	}
	check();
	MUST(syscall(SYS_rseq, area, 32L, 0, SIG) == 0);
	for (int i = 0; i < 10; i++) {
		check();
		sched_yield();
		if (area->cpu_id >= 1 << 20)
			die("cpu_id is %u", area->cpu_id);
	}
	MUST(syscall(SYS_rseq, area, 32L, UNREGISTER, SIG) == 0);
	MUST(syscall(SYS_rseq, own, n, 0, SIG) == 0);
	MUST(munmap(area, PAGE) == 0);
}

#include "procs_told.h"

static const struct named steps[] = {
	{ "fork-early", fork_early }, // before any other that fills memory
	{ "interrupted", interrupted }, // this, too
	{ "alternate-stacks", alternate_stacks },
	{ "rare-calls", rare_calls },
	{ "cold-ids", cold_ids },
	{ "rseq", rseq },
	{ "fork-both-write", fork_both_write },
	{ "fork-nested", fork_nested },
	{ "fork-end", fork_end },
	{ "fork-orphan", fork_orphan },
	{ "vfork-exec", vfork_exec },
	{ "posix-spawn", spawn },
	{ "clone3", clone3_fork },
	{ "clone-vm", clone_vm },
	{ "exec-from-thread", exec_from_thread },
	{ "leader-ends", leader_ends },
	{ "threads", threads },
	{ "thread-churn", thread_churn },
	{ "children", children },
	{ "children-together", children_together },
	{ "signals", signals },
	{ "signals-jump", signals_jump },
	{ "recursion", recursion },
	{ "stack-overflow", stack_overflow },
	{ 0 },
};
