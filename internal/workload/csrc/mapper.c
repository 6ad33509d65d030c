// SPDX-License-Identifier: Apache-2.0
//
// mapper BALLAST_MIB SEED [STEP...]
//
// Does to its address space what real programs do - moves, shrinks, frees,
// protects and replaces memory - and verifies the contents after every change.
// Between the changes it cycles through BALLAST_MIB of other memory, so that
// under a bound what it works on has been pushed out before it is touched.

#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { N = 1024 }; // pages in a tested range: 4 MiB

static struct ballast ballast;
static uint64_t serial; // distinct page numbers for each tested range

static void pressure(void) { ballast_cycle(&ballast); }

// at is the address of a page of a range.
static char *at(void *base, uint64_t page) { return (char *)base + page * PAGE; }

// filled maps n pages, fills them as pages first.. of generation 1 and pushes
// them out.
static void *filled(uint64_t n, uint64_t *first)
{
	void *p = anon(n * PAGE);
	*first = serial += 1 << 20;
	range_write(p, *first, n, 1);
	pressure();
	return p;
}

static void unmap(void *p, uint64_t n) { MUST(munmap(p, n * PAGE) == 0); }

static sigjmp_buf escape;
static volatile uintptr_t fault_address;
static volatile int fault_code;

static void on_segv(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	fault_address = (uintptr_t)info->si_addr;
	fault_code = info->si_code;
	siglongjmp(escape, 1);
}

// must_fault touches p and dies unless that raises SIGSEGV with p's address
// and the code.
static void must_fault(void *p, int writing, int code)
{
	fault_address = 0;
	if (sigsetjmp(escape, 1) == 0) {
		if (writing)
			*(volatile char *)p = 1;
		else
			(void)*(volatile char *)p;
		die("%s of %p did not fault", writing ? "write" : "read", p);
	}
	if (fault_address != (uintptr_t)p || fault_code != code)
		die("SIGSEGV has address %#lx, code %d; want %p, %d", fault_address, fault_code, p, code);
}

static void mremap_grow_shrink(void)
{
	uint64_t first;
	void *p = filled(N, &first);

	// The tail is given up, so that there is room to grow into.
	unmap(at(p, N / 2), N / 2);
	MUST(mremap(p, N / 2 * PAGE, N * PAGE, 0) == p);
	pressure();
	range_check(p, first, N / 2, 1);
	range_check_zero(at(p, N / 2), N / 2);
	range_write(p, first, N, 2);
	pressure();
	MUST(mremap(p, N * PAGE, N / 4 * PAGE, 0) == p);
	pressure();
	range_check(p, first, N / 4, 2);
	must_fault(at(p, N / 4), 0, SEGV_MAPERR);
	unmap(p, N / 4);
}

static void mremap_move(void)
{
	uint64_t first, other;
	void *p = filled(N, &first);
	char *target = anon(3 * N * PAGE);

	// Over memory that holds something else.
	other = serial += 1 << 20;
	range_write(target, other, 3 * N, 1);
	pressure();
	void *q = mremap(p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(target, N));
	MUST(q == at(target, N));
	must_fault(p, 0, SEGV_MAPERR);
	pressure();
	range_check(target, other, N, 1);
	range_check(q, first, N, 1);
	range_check(at(target, 2 * N), other + 2 * N, N, 1);
	range_write(q, first, N, 2);
	pressure();

	// Something is right behind it, so growing must move it. Only the half
	// that moves may change.
	void *r = mremap(at(q, N / 2), N / 2 * PAGE, N * PAGE, MREMAP_MAYMOVE);
	MUST(r != MAP_FAILED && r != at(q, N / 2));
	pressure();
	range_check(q, first, N / 2, 2);
	range_check(r, first + N / 2, N / 2, 2);
	range_check_zero(at(r, N / 2), N / 2);
	must_fault(at(q, N / 2), 1, SEGV_MAPERR);
	unmap(r, N);
	unmap(target, 3 * N);
}

static void mremap_dontunmap(void)
{
	uint64_t first;
	void *p = filled(N, &first);
	void *q = mremap(p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	if (q == MAP_FAILED && errno == EINVAL) {
		lacking("MREMAP_DONTUNMAP");
		unmap(p, N);
		return;
	}
	MUST(q != MAP_FAILED && q != p);
	pressure();
	range_check_zero(p, N / 2);
	range_check(q, first, N, 1);
	range_write(p, first, N, 7); // including pages never read since
	pressure();
	range_check(p, first, N, 7);
	range_check(q, first, N, 1);
	unmap(p, N);
	unmap(q, N);
}

static void madvise_dontneed(void)
{
	uint64_t first;
	void *p = filled(N, &first);
	for (uint64_t i = 0; i < N; i += 2)
		MUST(madvise(at(p, i), PAGE, MADV_DONTNEED) == 0);
	for (uint64_t i = 0; i < N; i += 4) // half of the dropped ones are zero pages first
		range_check_zero(at(p, i), 1);
	pressure();
	for (uint64_t i = 0; i < N; i++)
		if (i % 2)
			range_check(at(p, i), first + i, 1, 1);
		else
			range_check_zero(at(p, i), 1);
	range_write(p, first, N, 2);
	pressure();
	MUST(madvise(at(p, N / 4), N / 2 * PAGE, MADV_DONTNEED) == 0);
	range_check_zero(at(p, N / 4), N / 2);
	range_check(p, first, N / 4, 2);
	range_check(at(p, 3 * N / 4), first + 3 * N / 4, N / 4, 2);
	unmap(p, N);
}

// A freed page holds its old contents or zeros, whole, until it is written.
static void madvise_free(void)
{
	uint64_t first;
	char *p = filled(N, &first);
	if (madvise(p, N / 2 * PAGE, MADV_FREE) && errno != EINVAL) // as before Linux 4.5
		die("MADV_FREE: %s", strerror(errno));
	for (uint64_t i = 0; i < N / 2; i += 2)
		page_write((uint64_t *)at(p, i), first + i, 2);
	pressure();
	for (uint64_t i = 0; i < N / 2; i++) {
		uint64_t *page = (uint64_t *)at(p, i);
		if (i % 2 == 0)
			page_check(page, first + i, 2);
		else if (!page_is_zero(page))
			page_check(page, first + i, 1);
	}
	range_check(at(p, N / 2), first + N / 2, N / 2, 1);
	unmap(p, N);
}

static void reap(pid_t child)
{
	int status;
	MUST(waitpid(child, &status, 0) == child);
	if (status)
		die("child: wait status %#x", status);
}

static void madvise_fork(void)
{
	uint64_t first, other;
	void *p = filled(N, &first), *q = filled(N, &other);
	MUST(madvise(p, N / 2 * PAGE, MADV_WIPEONFORK) == 0);
	MUST(madvise(q, N / 2 * PAGE, MADV_DONTFORK) == 0);
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		range_check_zero(p, N / 2);
		range_check(at(p, N / 2), first + N / 2, N / 2, 1);
		must_fault(q, 0, SEGV_MAPERR);
		range_check(at(q, N / 2), other + N / 2, N / 2, 1);
		_exit(0);
	}
	pressure();
	range_check(p, first, N, 1);
	range_check(q, other, N, 1);
	reap(child);
	unmap(p, N);
	unmap(q, N);
}

static void madvise_guard(void)
{
	uint64_t first;
	void *p = filled(N, &first);
	if (madvise(at(p, 8), 8 * PAGE, MADV_GUARD_INSTALL)) {
		lacking("MADV_GUARD_INSTALL");
		unmap(p, N);
		return;
	}
	pressure();
	for (uint64_t i = 8; i < 16; i++)
		must_fault(at(p, i), i % 2, SEGV_MAPERR); // as if nothing were mapped
	range_check(p, first, 8, 1);
	range_check(at(p, 16), first + 16, N - 16, 1);
	MUST(madvise(at(p, 8), 8 * PAGE, MADV_GUARD_REMOVE) == 0);
	pressure();
	range_check_zero(at(p, 8), 8);
	range_write(at(p, 8), first + 8, 8, 1);
	pressure();
	range_check(p, first, N, 1);
	unmap(p, N);
}

// process_advice gives advice to two ranges of n pages by process_madvise(2), which
// takes any advice for the caller's own memory since Linux 6.13.
static int process_advice(void *a, void *b, uint64_t n, int advice)
{
	struct iovec v[2] = { { a, n * PAGE }, { b, n * PAGE } };
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	MUST(self >= 0);
	ssize_t got = syscall(SYS_process_madvise, self, v, 2, advice, 0);
	close(self);
	if (got < 0)
		return -1;
	MUST(got == (ssize_t)(2 * n * PAGE));
	return 0;
}

static void madvise_vector(void)
{
	uint64_t first;
	void *p = filled(N, &first);
	if (process_advice(at(p, 8), at(p, 32), 8, MADV_GUARD_INSTALL)) {
		lacking("process_madvise of the own memory");
		unmap(p, N);
		return;
	}
	pressure();
	must_fault(at(p, 8), 0, SEGV_MAPERR);
	must_fault(at(p, 39), 1, SEGV_MAPERR);
	MUST(process_advice(at(p, 8), at(p, 32), 8, MADV_GUARD_REMOVE) == 0);
	pressure();
	range_check_zero(at(p, 8), 8);
	range_check_zero(at(p, 32), 8);
	range_check(p, first, 8, 1);
	range_check(at(p, 16), first + 16, 16, 1);
	range_check(at(p, 40), first + 40, N - 40, 1);
	MUST(process_advice(at(p, 64), at(p, 128), 32, MADV_WIPEONFORK) == 0);
	pressure();
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		range_check_zero(at(p, 64), 32);
		range_check_zero(at(p, 128), 32);
		range_check(at(p, 96), first + 96, 32, 1);
		_exit(0);
	}
	range_check(at(p, 64), first + 64, N - 64, 1);
	reap(child);
	unmap(p, N);
}

// Advice that must not change a byte.
static void madvise_hints(void)
{
	static const int hints[] = { MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_SEQUENTIAL,
		MADV_RANDOM, MADV_NORMAL, MADV_DONTDUMP, MADV_DODUMP, MADV_MERGEABLE,
		MADV_UNMERGEABLE, MADV_POPULATE_READ, MADV_POPULATE_WRITE };
	uint64_t first;
	void *p = filled(N, &first);
	for (uint64_t i = 0; i < sizeof hints / sizeof *hints; i++) {
		if (madvise(p, N * PAGE, hints[i]) && errno != EINVAL)
			die("madvise %d: %s", hints[i], strerror(errno));
		pressure();
		range_check(p, first, N, 1);
	}
	void *fresh = anon(N * PAGE);
	if (madvise(fresh, N * PAGE, MADV_POPULATE_WRITE) && errno != EINVAL)
		die("MADV_POPULATE_WRITE: %s", strerror(errno));
	pressure();
	range_check_zero(fresh, N);
	unmap(fresh, N);
	unmap(p, N);
}

static void hugepages(void)
{
	uint64_t first = serial += 1 << 20;
	char *p = anon(3 * N * PAGE);
	char *q = (char *)(((uintptr_t)p + 2 * MIB - 1) & ~(2 * MIB - 1));
	madvise(q, 2 * N * PAGE, MADV_HUGEPAGE); // refused where there are none
	range_write(q, first, 2 * N, 1);
	pressure();
	range_check(q, first, 2 * N, 1);
	madvise(q, 2 * MIB, MADV_COLLAPSE); // may be refused, must not change a byte
	range_check(q, first, 2 * N, 1);
	for (uint64_t i = 0; i < 2 * N; i += 64)
		MUST(madvise(at(q, i), PAGE, MADV_DONTNEED) == 0);
	pressure();
	for (uint64_t i = 0; i < 2 * N; i++)
		if (i % 64)
			range_check(at(q, i), first + i, 1, 1);
		else
			range_check_zero(at(q, i), 1);
	unmap(p, 3 * N);
}

static void munmap_parts(void)
{
	uint64_t first;
	void *p = filled(N, &first);
	for (uint64_t i = 1; i < N; i += 8)
		unmap(at(p, i), 3);
	pressure();
	for (uint64_t i = 0; i < N; i++)
		if (i % 8 >= 1 && i % 8 < 4)
			must_fault(at(p, i), i % 2, SEGV_MAPERR);
		else
			range_check(at(p, i), first + i, 1, 1);
	for (uint64_t i = 1; i < N; i += 8) {
		void *hole = at(p, i);
		MUST(mmap(hole, 3 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == hole);
	}
	pressure();
	for (uint64_t i = 0; i < N; i++)
		if (i % 8 >= 1 && i % 8 < 4)
			range_check_zero(at(p, i), 1);
		else
			range_check(at(p, i), first + i, 1, 1);
	unmap(p, N);
}

#include "mapper_more.h"

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: mapper BALLAST_MIB SEED [STEP...]\n");
		return 2;
	}
	uint64_t mib = number(argv[1], "BALLAST_MIB");
	seed = number(argv[2], "SEED");
	struct sigaction action = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGSEGV, &action, 0) == 0);
	ballast_make(&ballast, mib);
	int named = 0;
	for (const struct named *s = named_only; argv[3] && s->name; s++)
		named |= !strcmp(argv[3], s->name);
	int status = run_steps(named ? named_only : steps, argv + 3);
	step = "end";
	pressure();
	return status;
}
