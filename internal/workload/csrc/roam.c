// SPDX-License-Identifier: Apache-2.0
//
// roam has threads do to memory of their own what a program may do to its memory, in
// random order, and verifies every word of what they find. All that it maps together
// is more than a bounded run lets be resident, so that whatever it touches may be on
// its way out, or in. The output does not depend on what the kernel allows.
//
//	roam THREADS OPERATIONS SEED [SKIP]
//
// SKIP is a bit set of the cases of operate that are left out, to find which of them
// it takes for something to go wrong. What has happened to a page is told when that
// turns out not to be what it should.
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { AREAS = 4, PAGES = 384, RUN = 24 }; // of each thread; pages of an area; of an operation

enum { STACK = 16, TIDE = 4 }; // pages of a thread's stack for handlers, and of what they verify

enum { GUARD_INSTALL = 102, GUARD_REMOVE = 103, COLLAPSE = 25, DONTUNMAP = 4 };

// A page of an area: what it holds, wherever that was written. Generation 0 is zeros.
struct content {
	uint64_t page, gen;
};

struct area {
	uint64_t *base;
	struct content is[PAGES];
};

struct roamer {
	pthread_t thread;
	uint64_t state, serial;
	int ends[2];
	struct area areas[AREAS];
	struct area *shown; // to the thread's own handler
	uint64_t from, n;
	char *stack, *borrowed; // where handlers run, and who has the memory for a while
	uint64_t *tide, gen;    // what a handler that comes at any time verifies
	pid_t tid;
};

static uint64_t operations, skip, roamers;
static struct roamer *all;
static __thread struct roamer *self;
static __thread int alone; // a child, or borrower, which has none of its own
static int memory;         // /proc/self/mem

// Something that was done to pages, and the pages that it was done with, if any.
struct deed {
	uint64_t operation, kind;
	const char *what;
	const void *at, *with;
	uint64_t n;
	long result;
	int moves; // what is with comes from at
};

enum { DEEDS = 4096, LATEST = 8 };

// What this thread has done, and what it is doing.
static __thread struct deed deeds[DEEDS];
static __thread uint64_t done, operation, kind;
static __thread const void *looking;

static void note(const char *what, const void *at, const void *with, uint64_t n, long result)
{
	deeds[done++ % DEEDS] = (struct deed){ operation, kind, what, at, with, n, result, with && result >= 0 };
}

static int has(const struct deed *d, const void *p)
{
	uint64_t n = d->n * PAGE;
	return (uint64_t)p - (uint64_t)d->at < n || (d->with && (uint64_t)p - (uint64_t)d->with < n);
}

// confess tells what has happened to the page that is wrong, the latest first, and where
// it came from.
static void confess(int sig, siginfo_t *si, void *context)
{
	(void)context;
	const void *p = sig == SIGABRT ? looking : (void *)((uint64_t)si->si_addr & ~(PAGE - 1));
	char line[256];
	int n = snprintf(line, sizeof line, "roam: signal %d, code %d, at %p in operation %lu, case %lu; before that:\n",
		sig, si->si_code, p, operation, kind);
	if (write(2, line, n) != n)
		_exit(1);
	for (uint64_t i = done; i-- > 0 && done - i < DEEDS;) { // the latest first: a page may come from elsewhere
		const struct deed *d = &deeds[i % DEEDS];
		int is = has(d, p);
		if (!is && i + LATEST < done)
			continue;
		n = snprintf(line, sizeof line, "%s %lu, case %lu: %s %p+%lu with %p: %ld\n", is ? "*" : " ",
			d->operation, d->kind, d->what, d->at, d->n, d->with, d->result);
		if (write(2, line, n) != n)
			_exit(1);
		if (is && d->moves && (uint64_t)p - (uint64_t)d->with < d->n * PAGE)
			p = (const char *)d->at + ((uint64_t)p - (uint64_t)d->with);
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

// layout is held where there is a hole in the memory of a thread, which the kernel would
// give to another that maps something anywhere.
static pthread_mutex_t layout = PTHREAD_MUTEX_INITIALIZER;

// Signals that come at any time do not come meanwhile: for one, Linux 6.18 begins an
// mremap(2) of several mappings anew if one is mergeable, and finds those gone that have
// been moved.
static void mask(int how)
{
	sigset_t tides;
	MUST(sigemptyset(&tides) == 0 && sigaddset(&tides, SIGUSR2) == 0);
	MUST((errno = pthread_sigmask(how, &tides, 0)) == 0);
}

static void lock_layout(void)
{
	mask(SIG_BLOCK);
	pthread_mutex_lock(&layout);
}

static void unlock_layout(void)
{
	pthread_mutex_unlock(&layout);
	mask(SIG_UNBLOCK);
}

static uint64_t below(struct roamer *r, uint64_t n) { return next_random(&r->state) % n; }

static void look(const struct area *a, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++) {
		const uint64_t *p = looking = a->base + i * WORDS;
		if (a->is[i].gen)
			page_check(p, a->is[i].page, a->is[i].gen);
		else
			range_check_zero(p, 1);
	}
	note("look", a->base + from * WORDS, 0, n, 0);
}

static void fill(struct roamer *r, struct area *a, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++) {
		// The bystander of a page's number is not verified; it is never written.
		a->is[i] = (struct content){ r->serial++, 1 + below(r, 1 << 20) };
		page_write(a->base + i * WORDS, a->is[i].page, a->is[i].gen);
	}
	note("fill", a->base + from * WORDS, 0, n, 0);
}

static void zero(struct area *a, uint64_t from, uint64_t n)
{
	memset(a->is + from, 0, n * sizeof *a->is);
	note("zero", a->base + from * WORDS, 0, n, 0);
}

// advise reports whether the kernel takes the advice. It may not know it, or have no
// memory for it.
static int advise(void *p, uint64_t n, int advice)
{
	int failed = madvise(p, n * PAGE, advice);
	note("advise", p, 0, n, failed ? -errno : advice);
	if (!failed)
		return 1;
	if (errno != EINVAL && errno != EAGAIN && errno != ENOMEM && errno != EBUSY && errno != EINTR)
		die("madvise %d: %s", advice, strerror(errno));
	return 0;
}

// somewhere is a place for n pages where nothing is.
static void *somewhere(uint64_t n)
{
	void *p = mmap(0, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(p != MAP_FAILED);
	return p;
}

// move brings a part of an area to another place and back, so that it is another
// mapping for a while.
static void move(struct roamer *r, struct area *a, uint64_t from, uint64_t n)
{
	lock_layout();
	void *here = a->base + from * WORDS, *there = somewhere(n);
	if (mremap(here, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there) != there) {
		MUST(errno == EFAULT); // several mappings, before Linux 6.17
		MUST(mmap(there, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == there);
		MUST(munmap(there, n * PAGE) == 0);
		unlock_layout();
		return;
	}
	note("move", here, there, n, 0);
	struct area away = { .base = (uint64_t *)there - from * WORDS };
	memcpy(away.is, a->is, sizeof away.is);
	if (below(r, 2))
		look(&away, from, n);
	if (below(r, 2))
		fill(r, &away, from, n);
	MUST(mremap(there, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, here) == here);
	note("move", there, here, n, 0);
	memcpy(a->is, away.is, sizeof away.is);
	unlock_layout();
}

// leave moves the pages of a part to another part of another area, and leaves the
// mapping.
static void leave(struct roamer *r, struct area *a, uint64_t from, struct area *b, uint64_t to, uint64_t n)
{
	void *here = a->base + from * WORDS, *there = b->base + to * WORDS;
	lock_layout();
	int left = mremap(here, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | DONTUNMAP, there) == there;
	int why = errno;
	note("leave", here, there, n, left ? 0 : -why);
	if (!left) // what was there has gone perhaps
		MUST(mmap(there, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == there);
	unlock_layout();
	if (!left) {
		if (why != EINVAL && why != EFAULT) // several mappings
			die("mremap: %s", strerror(why));
		zero(b, to, n);
		return;
	}
	memcpy(b->is + to, a->is + from, n * sizeof *a->is);
	zero(a, from, n);
	if (below(r, 2))
		fill(r, a, from, n);
}

static void operate(struct roamer *r);

enum { CHILD_OPERATIONS = 24 };

// child has a copy of everything, and goes on with it by itself.
static void child(struct roamer *r)
{
	layout = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER; // who held it is not here
	MUST(pipe(r->ends) == 0);                             // the parent's is the parent's
	MUST((memory = open("/proc/self/mem", O_RDWR)) >= 0);
	for (int i = 0; i < AREAS; i++)
		look(&r->areas[i], 0, PAGES);
	alone = 1;
	for (int i = 0; i < CHILD_OPERATIONS; i++)
		operate(r);
	for (int i = 0; i < AREAS; i++)
		look(&r->areas[i], 0, PAGES);
	_exit(0);
}

// beget makes a child that verifies all that it has. Of a part it may have none, or zeros;
// and it may be killed.
static void beget(struct roamer *r, struct area *a, uint64_t from, uint64_t n)
{
	void *p = a->base + from * WORDS;
	int withheld = below(r, 3), killed = below(r, 3) == 0, status;
	if (withheld)
		withheld = advise(p, n, withheld == 1 ? MADV_WIPEONFORK : MADV_DONTFORK) ? withheld : 0;
	pid_t pid = fork();
	MUST(pid >= 0);
	if (pid == 0) {
		if (withheld == 2)
			MUST(mmap(p, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
		if (withheld)
			zero(a, from, n);
		child(r);
	}
	if (withheld)
		MUST(advise(p, n, withheld == 1 ? MADV_KEEPONFORK : MADV_DOFORK));
	fill(r, &r->areas[below(r, AREAS)], 0, RUN); // meanwhile
	if (killed) {
		for (uint64_t i = below(r, 64); i > 0; i--)
			sched_yield();
		MUST(kill(pid, SIGKILL) == 0);
	}
	MUST(waitpid(pid, &status, 0) == pid);
	if (status && !(killed && status == SIGKILL))
		die("child: wait status %#x", status);
	look(a, from, n);
}

// borrower is a process of its own that goes on with this thread's memory.
static int borrower(void *arg)
{
	int were = alone;
	alone = 1;
	for (int i = 0; i < CHILD_OPERATIONS / 4; i++)
		operate(arg);
	alone = were;
	return 0;
}

static void lend(struct roamer *r, int flags)
{
	int status;
	pid_t pid = clone(borrower, r->borrowed + STACK * PAGE, CLONE_VM | SIGCHLD | flags, r);
	MUST(pid > 0);
	MUST(waitpid(pid, &status, 0) == pid);
	if (status)
		die("borrower: wait status %#x", status);
}

// resize takes the end of an area, and gives it back.
static void resize(struct roamer *r, struct area *a, uint64_t n)
{
	lock_layout();
	void *end = a->base + (PAGES - n) * WORDS;
	int one = mremap(a->base, PAGES * PAGE, (PAGES - n) * PAGE, 0) == a->base; // else it is several mappings
	MUST(one || munmap(end, n * PAGE) == 0);
	// The page behind it is in the way of what grows.
	if (one && (munmap(a->base + PAGES * WORDS, PAGE) != 0 || mremap(a->base, (PAGES - n) * PAGE, PAGES * PAGE, 0) != a->base))
		one = 0;
	note(one ? "resize" : "replace", end, 0, n, 0);
	MUST(one || mmap(end, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == end);
	MUST(mmap(a->base + PAGES * WORDS, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED);
	unlock_layout();
	zero(a, PAGES - n, n);
	if (below(r, 2))
		fill(r, a, PAGES - n, n);
}

// cover puts shared memory in the place of a part, for a while.
static void cover(struct roamer *r, struct area *a, uint64_t from, uint64_t n)
{
	void *p = a->base + from * WORDS;
	MUST(mmap(p, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	zero(a, from, n);
	fill(r, a, from, n);
	look(a, from, n);
	int kept = below(r, 2);
	MUST(mmap(p, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	zero(a, from, n);
	if (kept)
		fill(r, a, from, n);
}

// shown is the handler of a signal that a thread sends itself.
static void shown(int sig)
{
	(void)sig;
	look(self->shown, self->from, self->n);
	fill(self, self->shown, self->from, self->n);
}

// tide is the handler of a signal that comes at any time.
static void tide(int sig)
{
	(void)sig;
	int e = errno;
	const void *l = looking;
	range_check(looking = self->tide, (uint64_t)self->tid << 40, TIDE, self->gen);
	range_write(self->tide, (uint64_t)self->tid << 40, TIDE, ++self->gen);
	looking = l;
	errno = e;
}

// pass sends pages through a pipe, or straight, into others.
static void pass(struct roamer *r, struct area *a, uint64_t from, struct area *b, uint64_t to, uint64_t n)
{
	void *here = a->base + from * WORDS, *there = b->base + to * WORDS;
	if (a == b && from < to + n && to < from + n)
		return;
	n = n < 12 ? n : 12; // as a pipe holds
	struct iovec out = { here, n * PAGE }, in = { there, n * PAGE };
	switch (kind == 20 ? below(r, 2) : 2 + below(r, 2)) {
	case 0:
		MUST(write(r->ends[1], here, n * PAGE) == (ssize_t)(n * PAGE));
		MUST(read(r->ends[0], there, n * PAGE) == (ssize_t)(n * PAGE));
		break;
	case 1:
		MUST(process_vm_readv(getpid(), &in, 1, &out, 1, 0) == (ssize_t)(n * PAGE));
		break;
	case 2:
		MUST(pread(memory, there, n * PAGE, (off_t)here) == (ssize_t)(n * PAGE));
		break;
	case 3:
		MUST(pwrite(memory, here, n * PAGE, (off_t)there) == (ssize_t)(n * PAGE));
		break;
	}
	note("pass", here, there, n, 0);
	memcpy(b->is + to, a->is + from, n * sizeof *a->is);
}

static const int hints[] = { MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
	MADV_HUGEPAGE, MADV_NOHUGEPAGE, COLLAPSE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_SEQUENTIAL, MADV_RANDOM,
	MADV_NORMAL };

static void operate(struct roamer *r)
{
	struct area *a = &r->areas[below(r, AREAS)], *b = &r->areas[below(r, AREAS)];
	uint64_t n = 1 + below(r, RUN), from = below(r, PAGES - n), to = below(r, PAGES - n);
	uint64_t *p = a->base + from * WORDS;
	kind = below(r, 32);
	switch (skip >> kind & 1 ? 5 : kind) {
	case 0: case 1: case 2: case 3: case 4:
		look(a, from, n);
		break;
	case 5: case 6: case 7: case 8:
		fill(r, a, from, n);
		break;
	case 9:
		MUST(madvise(p, n * PAGE, MADV_DONTNEED) == 0);
		zero(a, from, n);
		if (below(r, 2))
			fill(r, a, from, n);
		break;
	case 10:
		advise(p, n, MADV_FREE);
		fill(r, a, from, n);
		break;
	case 11:
		move(r, a, from, n);
		break;
	case 12:
		if (a != b)
			leave(r, a, from, b, to, n);
		break;
	case 13:
	case 14:
		lock_layout();
		if (to & 1)
			MUST(munmap(p, n * PAGE) == 0);
		if (mmap(p, n * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (below(r, 2) ? MAP_POPULATE : 0), -1, 0) != p)
			die("mmap: %s", strerror(errno));
		unlock_layout();
		zero(a, from, n);
		if (below(r, 2))
			fill(r, a, from, n);
		break;
	case 15:
		MUST(mprotect(p, n * PAGE, PROT_READ) == 0);
		look(a, from, n);
		MUST(mprotect(p, n * PAGE, PROT_READ | PROT_WRITE) == 0);
		fill(r, a, from, n);
		break;
	case 16:
		MUST(mprotect(p, n * PAGE, PROT_NONE) == 0);
		look(b, b == a ? (from + n) % (PAGES - RUN) > from ? PAGES - 1 : 0 : to, b == a ? 0 : n);
		MUST(mprotect(p, n * PAGE, PROT_READ | PROT_WRITE) == 0);
		look(a, from, n);
		break;
	case 17: case 18:
		advise(p, n, hints[below(r, sizeof hints / sizeof *hints)]);
		look(a, from, n);
		break;
	case 19:
		if (advise(p, n, GUARD_INSTALL)) {
			MUST(madvise(p, n * PAGE, GUARD_REMOVE) == 0);
			zero(a, from, n);
			look(a, from, n);
		}
		break;
	case 20: case 21:
		pass(r, a, from, b, to, n);
		break;
	case 22:
		if (mlock(p, n * PAGE) == 0) {
			look(a, from, n);
			MUST(munlock(p, n * PAGE) == 0);
		}
		break;
	case 23:
		if (below(r, 16) == 0 && !alone)
			beget(r, a, from, n);
		break;
	case 24:
		resize(r, a, n);
		break;
	case 25:
		cover(r, a, from, n);
		break;
	case 26: case 27:
		r->shown = a, r->from = from, r->n = n;
		MUST(raise(SIGUSR1) == 0);
		break;
	case 28: case 29:
		tgkill(getpid(), all[to % roamers].tid, SIGUSR2); // who may have ended, or be another process's
		break;
	case 30:
		if (!alone)
			lend(r, CLONE_VFORK);
		break;
	case 31:
		if (!alone)
			lend(r, 0);
		break;
	}
}

static void *roam(void *arg)
{
	struct roamer *r = self = arg;
	stack_t ss = { .ss_sp = r->stack, .ss_size = STACK * PAGE };
	MUST(sigaltstack(&ss, 0) == 0);
	r->tid = gettid();
	range_write(r->tide, (uint64_t)r->tid << 40, TIDE, r->gen = 1);
	mask(SIG_UNBLOCK);
	for (operation = 0; operation < operations; operation++)
		operate(r);
	for (int i = 0; i < AREAS; i++)
		look(&r->areas[i], 0, PAGES);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 4 && argc != 5) {
		fprintf(stderr, "usage: roam THREADS OPERATIONS SEED [SKIP]\n");
		return 2;
	}
	uint64_t threads = number(argv[1], "THREADS");
	operations = number(argv[2], "OPERATIONS");
	seed = number(argv[3], "SEED");
	skip = argc == 5 ? number(argv[4], "SKIP") : 0;
	struct sigaction sa = { .sa_sigaction = confess, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGABRT, &sa, 0) == 0 && sigaction(SIGBUS, &sa, 0) == 0 && sigaction(SIGSEGV, &sa, 0) == 0);
	struct sigaction su = { .sa_handler = shown, .sa_flags = SA_ONSTACK | SA_RESTART };
	MUST(sigaction(SIGUSR1, &su, 0) == 0);
	su.sa_handler = tide;
	MUST(sigaction(SIGUSR2, &su, 0) == 0);
	MUST((memory = open("/proc/self/mem", O_RDWR)) >= 0);
	MUST((all = calloc(threads, sizeof *all)) && threads > 0);
	roamers = threads;
	for (uint64_t t = 0; t < threads; t++) {
		struct roamer *r = &all[t];
		r->stack = anon(STACK * PAGE);
		r->borrowed = anon(STACK * PAGE);
		r->tide = anon(TIDE * PAGE);
		r->state = mix64(seed + t + 1);
		r->serial = (t + 1) << 32;
		MUST(pipe(r->ends) == 0);
		for (int i = 0; i < AREAS; i++) {
			// What is next to it is not ours, and stays apart from it.
			r->areas[i].base = (uint64_t *)((char *)somewhere(PAGES + 2) + PAGE);
			MUST(mprotect(r->areas[i].base, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
			fill(r, &r->areas[i], 0, PAGES);
		}
	}
	lock_layout(); // their stacks, too
	for (uint64_t t = 0; t < threads; t++)
		MUST((errno = pthread_create(&all[t].thread, 0, roam, &all[t])) == 0);
	pthread_mutex_unlock(&layout); // the signals are theirs
	for (uint64_t t = 0; t < threads; t++)
		MUST((errno = pthread_join(all[t].thread, 0)) == 0);
	printf("ok roam\n");
	return 0;
}
