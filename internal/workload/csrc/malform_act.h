// SPDX-License-Identifier: Apache-2.0
//
// The second thread of malform: it touches memory, drops it, protects and maps
// it anew, which may have to wait for the first.

enum act { LOAD, STORE, DONTNEED, REMOVE, PROTECT, REMAP_OVER, UNMAP, MOVE_AREA, MLOCK, PUNCH, FORK, ACTS };

static struct {
	enum act act;
	uint64_t addr, len, arg;
	// What it came to: an errno, or a signal with its code and address.
	int err, sig, code;
	uint64_t at, value;
} job;

static int begin_fd, done_fd;
static pid_t actor_tid;
static __thread sigjmp_buf back;
static volatile sig_atomic_t inside;

static void caught(int sig, siginfo_t *si, void *context)
{
	(void)context;
	if (!inside)
		return;
	inside = 0;
	job.sig = sig;
	job.code = sig == SIGUSR1 ? 0 : si->si_code;
	job.at = sig == SIGUSR1 ? 0 : (uint64_t)si->si_addr;
	siglongjmp(back, 1);
}

// sum is of the whole page, so that a page half filled is seen.
static uint64_t sum(const volatile uint64_t *p)
{
	uint64_t s = 0;
	for (uint64_t i = 0; i < WORDS; i++)
		s = mix64(s + p[i]);
	return s & 0xffff;
}

static void act(void)
{
	long r = 0;
	switch (job.act) {
	case LOAD:
		job.value = sum((uint64_t *)(job.addr & -PAGE));
		break;
	case STORE:
		*(volatile unsigned char *)job.addr = (unsigned char)job.arg;
		break;
	case DONTNEED: r = madvise((void *)job.addr, job.len, MADV_DONTNEED); break;
	case REMOVE: r = madvise((void *)job.addr, job.len, MADV_REMOVE); break;
	case PROTECT: r = mprotect((void *)job.addr, job.len, (int)job.arg); break;
	case REMAP_OVER: map_area((int)job.arg); break;
	case UNMAP: r = munmap((void *)job.addr, job.len); break;
	case MOVE_AREA:
		if (mremap((void *)job.addr, job.len, job.len, MREMAP_MAYMOVE | MREMAP_FIXED, job.arg) == MAP_FAILED)
			r = -1;
		break;
	case MLOCK:
		r = job.arg ? mlock((void *)job.addr, job.len) : munlock((void *)job.addr, job.len);
		break;
	case PUNCH:
		r = fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)job.addr, (off_t)job.len);
		break;
	case FORK: {
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		r = child;
		int status = 0;
		if (child > 0 && waitpid(child, &status, 0) == child)
			job.value = (uint64_t)status;
		// Sources are again what the kernel takes for nobody else's.
		for (uint64_t i = 0; i < AREA_PAGES; i++)
			*(volatile char *)(area(DATA) + i * PAGE + 8) += 0;
		break;
	}
	default: break;
	}
	job.err = result(r);
}

static void *actor(void *unused)
{
	actor_tid = (pid_t)syscall(SYS_gettid);
	uint64_t n;
	for (;;) {
		MUST(write(done_fd, &(uint64_t){1}, 8) == 8);
		MUST(read(begin_fd, &n, 8) == 8);
		job.sig = job.err = job.code = 0;
		job.at = job.value = 0;
		if (sigsetjmp(back, 1) == 0) {
			inside = 1;
			act();
		}
		inside = 0;
	}
	return unused;
}

// wait_for returns the descriptor that has a message for the actor to wait for,
// -1 if the actor is done.
static int wait_for(void)
{
	for (;;) {
		struct pollfd p[MOST + 1] = {{done_fd, POLLIN, 0}};
		int n = 1;
		for (int i = 0; i < MOST; i++)
			if (open_fds[i].fd >= 0 && spoken[open_fds[i].file])
				p[n++] = (struct pollfd){open_fds[i].fd, POLLIN, 0};
		MUST(poll(p, (nfds_t)n, -1) > 0);
		poll(p, (nfds_t)n, 0); // all numbers of a file say the same by now
		uint64_t v;
		if (p[0].revents) {
			MUST(read(done_fd, &v, 8) == 8);
			return -1;
		}
		for (int i = 1; i < n; i++)
			if (p[i].revents & POLLIN)
				return p[i].fd;
	}
}

static void actor_start(void)
{
	struct sigaction a = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
	MUST(!sigaction(SIGSEGV, &a, NULL) && !sigaction(SIGBUS, &a, NULL) && !sigaction(SIGUSR1, &a, NULL));
	begin_fd = eventfd(0, EFD_CLOEXEC);
	done_fd = eventfd(0, EFD_CLOEXEC);
	pthread_t t;
	MUST(begin_fd >= 0 && done_fd >= 0 && pthread_create(&t, NULL, actor, NULL) == 0);
	wait_for();
}

// answer deals with a page fault that the actor waits for. If that did not wake
// it, a signal does, which a thread in a fault of its own sees.
static void answer(int fd, uint64_t page, int last)
{
	int err = 1;
	switch (last ? 8 : below(8)) {
	case 0: case 1: {
		uint64_t w[5] = {page, area(DATA) + below(AREA_PAGES - 1) * PAGE, PAGE, roll() & 2, 0x5a5a};
		err = request(fd, UFFDIO_COPY, w, 5);
		break;
	}
	case 2: case 3: {
		uint64_t w[4] = {page, PAGE, 0, 0x5a5a};
		err = request(fd, UFFDIO_ZEROPAGE, w, 4);
		break;
	}
	case 4: {
		uint64_t w[3] = {page, PAGE, 0};
		err = request(fd, UFFDIO_WRITEPROTECT, w, 3);
		break;
	}
	case 5: {
		uint64_t w[4] = {page, PAGE, 0, 0x5a5a};
		err = request(fd, one_in(2) ? UFFDIO_CONTINUE : POISON, w, 4);
		break;
	}
	case 6: {
		uint64_t w[2] = {page, PAGE};
		err = request(fd, UFFDIO_WAKE, w, 2);
		break;
	}
	}
	if (!err)
		return;
	if (job.act != MLOCK) {
		MUST(syscall(SYS_tgkill, getpid(), actor_tid, SIGUSR1) == 0);
		return;
	}
	// No signal but a fatal one ends this wait.
	struct uffdio_range r = {page, PAGE};
	MUST(ioctl(fd, UFFDIO_UNREGISTER, &r) == 0 && ioctl(fd, UFFDIO_WAKE, &r) == 0);
}

// perform has the actor do the job, and serves what it waits for.
static void perform(void)
{
	MUST(write(begin_fd, &(uint64_t){1}, 8) == 8);
	for (int rounds = 0;; rounds++) {
		int fd = wait_for();
		if (fd < 0)
			break;
		// What is asked meanwhile may be told to come again.
		if (rounds < 2 && job.act > STORE && job.act != MLOCK && one_in(2))
			any_request();
		long r = read(fd, messages, 32);
		printf("  read %d: %ld errno %d\n", fd, r, result(r));
		if (r != 32)
			continue;
		struct uffd_msg m;
		memcpy(&m, messages, sizeof m);
		if (m.event == UFFD_EVENT_FORK) {
			printf("  fork: descriptor %u\n", m.arg.fork.ufd);
			close((int)m.arg.fork.ufd);
			continue;
		}
		print_message(messages);
		if (m.event == UFFD_EVENT_PAGEFAULT)
			answer(fd, m.arg.pagefault.address & -PAGE, rounds > 4);
	}
	printf("act %d %#lx %#lx %#lx: errno %d value %#lx", job.act, name(job.addr), job.len, name(job.arg), job.err, job.value);
	if (job.sig)
		printf(" signal %d code %d at %#lx", job.sig, job.code, name(job.at));
	printf("\n");
}

static void any_act(void)
{
	uint64_t a = below(DATA);
	job.act = one_in(2) ? (one_in(2) ? LOAD : STORE) : below(ACTS);
	job.addr = good();
	job.len = (1 + below(3)) * PAGE;
	job.arg = roll() & 0xff;
	switch (job.act) {
	case LOAD: case STORE:
		if (one_in(8))
			job.addr = area(below(DATA)) + below(AREA_PAGES + 1) * PAGE;
		job.addr += below(PAGE);
		break;
	case PROTECT: job.arg = roll() & 3; break;
	case REMAP_OVER: job.arg = a; job.addr = area(a); break;
	case MOVE_AREA:
		// Whether anonymous memory becomes one with its new neighbours depends
		// on what the kernel alone knows.
		job.arg = area(below(DATA));
		if (job.addr < area(SHMEM))
			job.arg += (AREA_PAGES + 4 + below(8)) * PAGE;
		else
			job.arg += below(AREA_PAGES) * PAGE;
		break;
	case MLOCK: job.arg = roll() & 1; break;
	case PUNCH: job.addr = below(AREA_PAGES) * PAGE; break;
	case FORK:
		if (!one_in(4))
			return;
	default: break;
	}
	perform();
}
