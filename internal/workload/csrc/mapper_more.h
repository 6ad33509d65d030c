// SPDX-License-Identifier: Apache-2.0
//
// The steps of mapper about protection, placement, the break and locking, and
// its table of all steps.

static void protect(void)
{
	uint64_t first;
	void *p = filled(N, &first);
	for (uint64_t gen = 1; gen < 4; gen++) {
		MUST(mprotect(p, N * PAGE, PROT_READ) == 0);
		pressure();
		for (uint64_t i = 0; i < N; i += 32)
			must_fault(at(p, i), 1, SEGV_ACCERR);
		range_check(p, first, N, gen);
		MUST(mprotect(p, N * PAGE, PROT_NONE) == 0);
		pressure();
		for (uint64_t i = 0; i < N; i += 32)
			must_fault(at(p, i), i & 32, SEGV_ACCERR);
		MUST(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
		range_check(p, first, N, gen);
		range_write(p, first, N, gen + 1);
		pressure();
	}

	// Every other page read-only: as many mappings as pages.
	for (uint64_t i = 0; i < N; i += 2)
		MUST(mprotect(at(p, i), PAGE, PROT_READ) == 0);
	pressure();
	range_check(p, first, N, 4);
	MUST(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
	range_write(p, first, N, 5);
	range_check(p, first, N, 5);
	unmap(p, N);
}

// An allocator's arena: reserved without access, opened bit by bit.
static void arena(void)
{
	uint64_t first = serial += 1 << 20;
	char *p = mmap(0, 16 * N * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(p != MAP_FAILED);
	for (uint64_t i = 0; i < N; i += 64) {
		MUST(mprotect(at(p, i), 64 * PAGE, PROT_READ | PROT_WRITE) == 0);
		range_check_zero(at(p, i), 1);
		range_write(at(p, i), first + i, 64, 1);
	}
	pressure();
	range_check(p, first, N, 1);
	must_fault(at(p, N), 1, SEGV_ACCERR);
	MUST(mmap(p, N / 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	MUST(mprotect(p, N / 2 * PAGE, PROT_READ | PROT_WRITE) == 0);
	range_check_zero(p, N / 2);
	range_check(at(p, N / 2), first + N / 2, N / 2, 1);
	unmap(p, 16 * N);
}

static void fixed_over_live(void)
{
	uint64_t first;
	void *p = filled(N, &first), *middle = at(p, N / 4);
	MUST(mmap(middle, N / 2 * PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == middle);
	pressure();
	range_check_zero(middle, N / 2);
	range_write(middle, first + N / 4, N / 2, 3);
	pressure();
	range_check(p, first, N / 4, 1);
	range_check(middle, first + N / 4, N / 2, 3);
	range_check(at(p, 3 * N / 4), first + 3 * N / 4, N / 4, 1);

	// A file over the middle, then memory again.
	int fd = open("/proc/self/exe", O_RDONLY);
	MUST(fd >= 0);
	MUST(mmap(middle, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == middle);
	close(fd);
	if (memcmp(middle, "\177ELF", 4))
		die("a file mapped over memory does not show");
	MUST(mmap(middle, 2 * PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == middle);
	range_check_zero(middle, 2);
	range_check(at(middle, 2), first + N / 4 + 2, N / 2 - 2, 3);
	unmap(p, N);
}

// Nothing here may call malloc, which moves the break too.
static void brk_up_down(void)
{
	uint64_t first = serial += 1 << 20;
	uintptr_t odd = (uintptr_t)sbrk(0) & (PAGE - 1);
	if (odd)
		MUST(sbrk(PAGE - odd) != (void *)-1);
	char *p = sbrk(N * PAGE);
	MUST(p != (void *)-1);
	for (uint64_t gen = 1; gen < 4; gen++) {
		range_write(p, first, N, gen);
		pressure();
		MUST(sbrk(-(intptr_t)(N / 2 * PAGE)) == at(p, N));
		must_fault(at(p, N / 2), 1, SEGV_MAPERR);
		pressure();
		range_check(p, first, N / 2, gen);
		MUST(sbrk(N / 2 * PAGE) == at(p, N / 2));
		range_check_zero(at(p, N / 2), N / 4);
		pressure();
		range_check_zero(at(p, N / 2), N / 2);
		range_check(p, first, N / 2, gen);
	}
	MUST(sbrk(-(intptr_t)(N * PAGE)) == at(p, N));
}

static void guard_pages(void)
{
	uint64_t first;
	char *p = filled(N, &first);
	MUST(mprotect(p, PAGE, PROT_NONE) == 0);
	MUST(mprotect(at(p, N - 1), PAGE, PROT_NONE) == 0);
	pressure();
	must_fault(p + PAGE - 1, 0, SEGV_ACCERR);
	must_fault(at(p, N - 1), 1, SEGV_ACCERR);
	range_check(at(p, 1), first + 1, N - 2, 1);
	must_fault((char *)8, 0, SEGV_MAPERR);
	unmap(p, N);
}

static void noreserve_sparse(void)
{
	enum { STRIDE = 4096, COUNT = 1024 }; // in pages: one of 16 MiB, 16 GiB in all
	uint64_t first = serial += 1 << 30;
	char *p = mmap(0, (uint64_t)STRIDE * COUNT * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED && errno == ENOMEM) {
		lacking("16 GiB of MAP_NORESERVE");
		return;
	}
	MUST(p != MAP_FAILED);
	for (uint64_t gen = 1; gen < 3; gen++) {
		for (uint64_t i = 0; i < COUNT; i++)
			range_write(at(p, i * STRIDE + i % 100), first + i, 1, gen);
		pressure();
		for (uint64_t i = 0; i < COUNT; i++)
			range_check(at(p, i * STRIDE + i % 100), first + i, 1, gen);
	}
	for (uint64_t i = 0; i < COUNT; i += 16)
		range_check_zero(at(p, i * STRIDE + i % 100 + 1), 1);
	unmap(p, (uint64_t)STRIDE * COUNT);
}

static void populate(void)
{
	uint64_t first = serial += 1 << 20;
	void *p = mmap(0, N * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	MUST(p != MAP_FAILED);
	pressure();
	range_check_zero(p, N / 2);
	range_write(p, first, N, 1);
	pressure();
	range_check(p, first, N, 1);
	unmap(p, N);
}

static void locked(void)
{
	uint64_t first, n = 256;
	void *p = filled(N, &first);
	if (mlock(p, n * PAGE) && (errno == ENOMEM || errno == EPERM)) {
		lacking("RLIMIT_MEMLOCK of 1 MiB");
		unmap(p, N);
		return;
	}
	pressure();
	range_check(p, first, N, 1);
	range_write(p, first, n, 2);
	pressure();
	MUST(munlock(p, n * PAGE) == 0);
	pressure();
	range_check(p, first, n, 2);
	range_check(at(p, n), first + n, N - n, 1);
	void *q = mmap(0, n * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	MUST(q != MAP_FAILED);
	range_check_zero(q, n);
	range_write(q, first, n, 3);
	pressure();
	range_check(q, first, n, 3);
	unmap(q, n);
	unmap(p, N);
}

// The ballast goes first: locked, it could not leave.
static void locked_all(void)
{
	uint64_t first, mib = ballast.pages / MIB_PAGES;
	void *p = filled(N, &first);
	ballast_free(&ballast);
	struct rlimit limit;
	MUST(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	if (mlockall(MCL_CURRENT | MCL_FUTURE)) {
		if (errno != ENOMEM && errno != EPERM)
			die("mlockall: %s", strerror(errno));
		lacking("mlockall");
	}
	range_check(p, first, N, 1);
	void *q = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (q != MAP_FAILED) { // EAGAIN beyond the limit
		range_check_zero(q, 1);
		range_write(q, first, 1, 2);
	}
	MUST(munlockall() == 0);
	ballast_make(&ballast, mib);
	pressure();
	range_check(p, first, N, 1);
	if (q != MAP_FAILED) {
		range_check(q, first, 1, 2);
		unmap(q, 1);
	}
	unmap(p, N);
}

static void grows_down(void)
{
	// The kernel keeps a gap below such a mapping; take room for both.
	uint64_t first = serial += 1 << 20, room = 4 * N;
	char *p = anon(room * PAGE);
	unmap(p, room);
	char *top = mmap(at(p, room - 16), 16 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0);
	MUST(top == at(p, room - 16));
	char *end = at(top, 16);
	for (uint64_t i = 1; i <= N; i++) {
		page_write((uint64_t *)(end - i * PAGE), first + i, 1);
		if (i % (N / 4) == 0)
			pressure();
	}
	for (uint64_t i = 1; i <= N; i++)
		page_check((uint64_t *)(end - i * PAGE), first + i, 1);
	MUST(munmap(end - N * PAGE, N * PAGE) == 0);
}

static void dev_zero(void)
{
	uint64_t first = serial += 1 << 20;
	int fd = open("/dev/zero", O_RDWR);
	MUST(fd >= 0);
	void *p = mmap(0, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	MUST(p != MAP_FAILED);
	close(fd);
	range_check_zero(p, N / 2);
	range_write(p, first, N, 1);
	pressure();
	range_check(p, first, N, 1);
	unmap(p, N);
}

static void zero_pages(void)
{
	uint64_t first = serial += 1 << 20;
	void *p = anon(N * PAGE);
	range_check_zero(p, N);
	pressure();
	range_check_zero(p, N);
	for (uint64_t i = 0; i < N; i += 2)
		range_write(at(p, i), first + i, 1, 1);
	pressure();
	for (uint64_t i = 0; i < N; i++)
		if (i % 2)
			range_check_zero(at(p, i), 1);
		else
			range_check(at(p, i), first + i, 1, 1);

	// Back to zeros by writing them, which is not the same as dropping.
	memset(p, 0, N * PAGE);
	pressure();
	range_check_zero(p, N);
	unmap(p, N);
}

// The kernel itself reads and writes memory that is out.
static void kernel_access(void)
{
	uint64_t first;
	char *p = filled(N, &first), *q = anon(N * PAGE), *r = filled(N, &first);
	int fd = memfd_create("mapper", MFD_CLOEXEC), ends[2];
	MUST(fd >= 0);
	range_write(p, first, N, 2);
	pressure();
	for (uint64_t done = 0; done < N * PAGE;) {
		ssize_t n = write(fd, p + done, N * PAGE - done);
		MUST(n > 0);
		done += n;
	}
	pressure();
	for (uint64_t done = 0; done < N * PAGE;) {
		ssize_t n = pread(fd, q + done, N * PAGE - done, done);
		MUST(n > 0);
		done += n;
	}
	pressure();
	range_check(q, first, N, 2);
	close(fd);

	// Through a pipe, into pages that hold something else and are out.
	MUST(pipe(ends) == 0);
	pressure();
	for (uint64_t i = 0; i < N; i += 8) {
		MUST(write(ends[1], at(p, i), 8 * PAGE) == 8 * (ssize_t)PAGE);
		MUST(read(ends[0], at(r, i), 8 * PAGE) == 8 * (ssize_t)PAGE);
	}
	pressure();
	range_check(r, first, N, 2);
	close(ends[0]);
	close(ends[1]);
	unmap(p, N);
	unmap(q, N);
	unmap(r, N);
}

// An allocator that tells of what it has freed, and gives it out again at once, while
// other memory comes in: what was written after MADV_FREE is there, page by page,
// though nothing of that write faults. An older kernel refuses the advice.
static void free_and_write(void)
{
	enum { RUN = 4, ROUNDS = 20000 };
	uint64_t first, *p = filled(4 * N, &first);
	uint64_t *gens = malloc(4 * N / RUN * sizeof *gens);
	MUST(gens);
	for (uint64_t i = 0; i < 4 * N / RUN; i++)
		gens[i] = 1;
	for (uint64_t round = 0; round < ROUNDS; round++) {
		uint64_t draw = mix64(seed + round), seen = draw % (4 * N / RUN) * RUN;
		range_check(at(p, seen), first + seen, RUN, gens[seen / RUN]);
		// Not that one: what was not used for long may be on its way out.
		uint64_t i = (draw >> 32) % (4 * N / RUN), at_page = i * RUN;
		if (madvise(at(p, at_page), RUN * PAGE, MADV_FREE) && errno != EINVAL)
			die("MADV_FREE: %s", strerror(errno));
		range_write(at(p, at_page), first + at_page, RUN, ++gens[i]);
	}
	free(gens);
	unmap(p, 4 * N);
}

static const struct named steps[] = {
	{ "mremap-grow-shrink", mremap_grow_shrink },
	{ "mremap-move", mremap_move },
	{ "mremap-dontunmap", mremap_dontunmap },
	{ "madvise-dontneed", madvise_dontneed },
	{ "madvise-free", madvise_free },
	{ "free-and-write", free_and_write },
	{ "madvise-fork", madvise_fork },
	{ "madvise-guard", madvise_guard },
	{ "madvise-hints", madvise_hints },
	{ "hugepages", hugepages },
	{ "munmap-parts", munmap_parts },
	{ "mprotect", protect },
	{ "arena", arena },
	{ "fixed-over-live", fixed_over_live },
	{ "brk", brk_up_down },
	{ "guard-pages", guard_pages },
	{ "noreserve-sparse", noreserve_sparse },
	{ "populate", populate },
	{ "mlock", locked },
	{ "mlockall", locked_all },
	{ "grows-down", grows_down },
	{ "dev-zero", dev_zero },
	{ "zero-pages", zero_pages },
	{ "kernel-access", kernel_access },
	{ 0 },
};

// served reports whether the kernel asks somebody for our missing pages.
static int served(void)
{
	char line[512];
	int found = 0;
	FILE *f = fopen("/proc/self/smaps", "r");
	MUST(f);
	while (!found && fgets(line, sizeof line, f))
		found = !strncmp(line, "VmFlags:", 8) && strstr(line, " um ");
	fclose(f);
	return found;
}

// Guards in the way of memory that is touched in order, set before anybody serves it and
// after: they are still there when all the rest is.
static void guards_in_stream(void)
{
	enum { EACH = 16, LONG = 20 * N };
	uint64_t first = serial += 1 << 20;
	char *p = anon(LONG * PAGE);
	madvise(p, LONG * PAGE, MADV_NOHUGEPAGE); // refused where there are none
	for (uint64_t half = 0; half < 2; half++) {
		uint64_t from = half * LONG / 2, to = from + LONG / 2;
		for (uint64_t i = from; i < to; i += EACH)
			if (madvise(at(p, i), PAGE, MADV_GUARD_INSTALL)) {
				lacking("MADV_GUARD_INSTALL");
				return;
			}
		for (uint64_t i = from; i < to; i++)
			if (i % EACH)
				range_write(at(p, i), first + i, 1, 1);
	}
	for (uint64_t i = 0; i < LONG; i++)
		if (i % EACH)
			range_check(at(p, i), first + i, 1, 1);
		else
			must_fault(at(p, i), i / EACH % 2, SEGV_MAPERR);
	unmap(p, LONG);
}

// Pages that were freed, but not taken, before anybody served the memory: the kernel
// takes them when it likes, and they are zero then.
static void freed_early(void)
{
	enum { STEPS = 120, STEP = MIB / PAGE };
	uint64_t freed, first, *p = filled(2 * N, &freed);
	void *q[STEPS];
	int i = 0;
	if (madvise(p, 2 * N * PAGE, MADV_FREE) && errno != EINVAL)
		die("MADV_FREE: %s", strerror(errno));
	while (i < STEPS / 3 && !served()) // alone it never is
		q[i++] = filled(STEP, &first);
	if (madvise(p, 2 * N * PAGE, MADV_PAGEOUT) && errno != EINVAL)
		die("MADV_PAGEOUT: %s", strerror(errno));
	for (uint64_t i = 0; i < 2 * N; i++)
		if (!page_is_zero(p + i * WORDS))
			page_check(p + i * WORDS, freed + i, 1);
	while (i < STEPS)
		q[i++] = filled(STEP, &first);
	while (i > 0)
		unmap(q[--i], STEP);
	unmap(p, 2 * N);
}

// Memory that children find zeroed, since before anybody served it; and withdrawn as soon
// as there is one.
static void wiped(void)
{
	enum { FROM = 8, WIPED = N / 2, OTHER = 1 << 19 };
	uint64_t first;
	char *p = filled(N, &first), *w = at(p, FROM);
	MUST(madvise(w, WIPED * PAGE, MADV_WIPEONFORK) == 0);
	enum { SHORT = 16 };
	char *grown = anon(2 * SHORT * PAGE);
	range_write(grown, first + OTHER, SHORT, 1);
	unmap(at(grown, SHORT), SHORT);
	MUST(madvise(grown, SHORT * PAGE, MADV_WIPEONFORK) == 0);
	struct ballast more;
	ballast_make(&more, 56);
	MUST(mremap(grown, SHORT * PAGE, 2 * SHORT * PAGE, 0) == grown);
	range_write(grown, first + OTHER, 2 * SHORT, 1);
	ballast_cycle(&more);
	for (int round = 0; round < 4; round++) {
		if (round % 2)
			range_check(p, first, N, 1);
		pid_t zeroed = fork();
		MUST(zeroed >= 0);
		if (zeroed == 0) {
			range_check(p, first, FROM, 1);
			range_check_zero(w, WIPED);
			range_check_zero(grown, 2 * SHORT);
			range_check(at(w, WIPED), first + FROM + WIPED, N - FROM - WIPED, 1);
			range_write(w, first + OTHER, WIPED, 1);
			ballast_cycle(&more);
			range_check(w, first + OTHER, WIPED, 1);
			_exit(0);
		}
		MUST(madvise(w, WIPED * PAGE, MADV_KEEPONFORK) == 0);
		pid_t whole = fork();
		MUST(whole >= 0);
		if (whole == 0) {
			range_check(p, first, N, 1);
			_exit(0);
		}
		MUST(madvise(w, WIPED * PAGE, MADV_WIPEONFORK) == 0);
		reap(zeroed);
		reap(whole);
		ballast_cycle(&more);
	}
	range_check(p, first, N, 1);
	range_check(grown, first + OTHER, 2 * SHORT, 1);
	ballast_free(&more);
	unmap(grown, 2 * SHORT);
	unmap(p, N);
}

// put_answer writes a function that returns n, of 15 bits, to a page.
static void put_answer(void *page, uint32_t n)
{
#if defined __x86_64__
	unsigned char code[] = { 0xb8, n, n >> 8, 0, 0, 0xc3 }; // mov $n, %eax; ret
#elif defined __aarch64__
	uint32_t code[] = { 0x52800000 | n << 5, 0xd65f03c0 }; // mov w0, #n; ret
#endif
	memcpy(page, code, sizeof code);
	__builtin___clear_cache(page, (char *)page + sizeof code);
}

// Memory that can be executed, as compilers just in time have it: all of what this program
// has. Code that has left runs when it is called.
static void executable(void)
{
	const uint64_t n = 6 * N, codes = N / 4;
	const int all = PROT_READ | PROT_WRITE | PROT_EXEC;
	uint64_t first = serial += 1 << 20;
	char *p = mmap(0, n * PAGE, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED);
	for (uint64_t i = 0; i < codes; i++)
		put_answer(at(p, i), i);
	for (uint64_t gen = 1; gen < 5; gen++) {
		range_write(at(p, codes), first, n - codes, gen);
		range_check(at(p, codes), first, n - codes, gen);
		for (uint64_t i = 0; i < codes; i++) {
			uint32_t (*answer)(void) = (uint32_t (*)(void))at(p, i);
			if (answer() != i)
				die("function %lu answers %u", (unsigned long)i, answer());
		}
		// Which of it can be executed changes, once as a whole and once in parts.
		for (uint64_t i = codes; i < n; i += gen % 2 ? n : 100)
			MUST(mprotect(at(p, i), (gen % 2 ? n - i : 50) * PAGE,
				gen % 4 < 2 ? PROT_READ | PROT_WRITE : all) == 0);
	}
	range_check(at(p, codes), first, n - codes, 4);
	unmap(p, n);
}

// What is read from and written to /proc/PID/mem, at a position, is all there: the kernel
// waits for nobody then, and says EIO where a page is missing.
static void memory_file(void)
{
	enum { PART = 64, OTHER = 1 << 19 };
	uint64_t first, *buf = anon(PART * PAGE), *p = filled(N, &first);
	void *fresh = anon(N * PAGE), *code = mmap(0, PART * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(code != MAP_FAILED);
	int fd = open("/proc/self/mem", O_RDWR);
	MUST(fd >= 0);
	for (uint64_t i = 0; i < N; i += PART) {
		MUST(pread(fd, buf, PART * PAGE, (off_t)at(p, i)) == PART * PAGE);
		range_check(buf, first + i, PART, 1);
		range_write(buf, first + OTHER + i, PART, 1);
		MUST(pwrite(fd, buf, PART * PAGE, (off_t)at(p, i)) == PART * PAGE);
		MUST(pwrite(fd, buf, PART * PAGE, (off_t)at(fresh, i)) == PART * PAGE);
		MUST(pwrite(fd, buf, PART * PAGE, (off_t)code) == PART * PAGE); // as compilers write code
		pressure();
		range_check(code, first + OTHER + i, PART, 1);
	}
	range_check(p, first + OTHER, N, 1);
	range_check(fresh, first + OTHER, N, 1);
	pressure();
	pid_t parent = getpid(), child = fork();
	MUST(child >= 0);
	if (child == 0) {
		char name[64];
		snprintf(name, sizeof name, "/proc/%d/task/%d/mem", parent, parent);
		int theirs = open(name, O_RDONLY);
		MUST(theirs >= 0);
		range_write(p, first, N, 1);
		for (uint64_t i = 0; i < N; i += PART) {
			MUST(pread(theirs, buf, PART * PAGE, (off_t)at(p, i)) == PART * PAGE);
			range_check(buf, first + OTHER + i, PART, 1);
		}
		_exit(0);
	}
	reap(child);
	unmap(at(p, 8), 8);
	MUST(pread(fd, buf, 32 * PAGE, (off_t)p) == 8 * PAGE);
	range_check(buf, first + OTHER, 8, 1);
	MUST(pread(fd, buf, PAGE, (off_t)at(p, 8)) == -1 && errno == EIO);
	MUST(close(fd) == 0);
	unmap(p, 8);
	unmap(at(p, 16), N - 16);
	unmap(fresh, N);
	unmap(code, PART);
	unmap(buf, PART);
}

// Steps that are run only if they are named.
static const struct named named_only[] = {
	{ "madvise-vector", madvise_vector }, // the engine in software refuses it, as older kernels do
	{ "guards-in-stream", guards_in_stream }, // alone: half of them are set early
	{ "freed-early", freed_early }, // alone: nothing else has filled memory
	{ "wiped", wiped }, // alone, too
	{ "executable", executable }, // where a program may have such memory
	{ "memory-file", memory_file }, // where the kernel lets a program write to its code
	{ 0 },
};
