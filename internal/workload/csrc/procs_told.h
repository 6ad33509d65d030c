// SPDX-License-Identifier: Apache-2.0
//
// Steps of procs about what the kernel was told of a thread, or looks for under the
// name of one.

// without_leader goes on when the thread is no more by whose id a process is known.
static void *without_leader(void *arg)
{
	enum { N = 8 };
	struct iovec *from = anon(PAGE), *to = anon(PAGE);
	char *copy = anon(N * PAGE);
	char c;
	int p[2];
	(void)arg;
	while (readlink("/proc/self/exe", &c, 1) == 1) // as long as it has memory
		sched_yield();
	fill();
	MUST(pipe(p) == 0);
	for (int round = 0; round < 4; round++) {
		for (int i = 0; i < N; i++) {
			from[i] = (struct iovec){ memory + pages / N * i * WORDS, PAGE };
			to[i] = (struct iovec){ copy + i * PAGE, PAGE };
		}
		check();
		MUST(writev(p[1], from, N) == N * PAGE);
		check();
		MUST(readv(p[0], to, N) == N * PAGE);
		for (int i = 0; i < N; i++)
			page_check((uint64_t *)(copy + i * PAGE), pages / N * i, gen);
	}
	_exit(0);
}

static void leader_ends(void)
{
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		pthread_t t;
		MUST(pthread_create(&t, 0, without_leader, 0) == 0);
		syscall(SYS_exit, 0);
	}
	reap(child, 0);
}

static struct pollfd *waits_for;

static void *waits(void *arg)
{
	(void)arg;
	errno = 0;
	int n = poll(waits_for, 1, -1);
	if (n != 1 || waits_for->revents != POLLIN)
		die("poll returned %d, events %#x", n, waits_for->revents);
	return 0;
}

// in_call waits until another thread is in a call.
static void in_call(pid_t tid)
{
	char path[64], state[32];
	int n;
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
	do {
		sched_yield();
		int fd = open(path, O_RDONLY);
		MUST(fd >= 0);
		MUST((n = read(fd, state, sizeof state - 1)) >= 0);
		MUST(close(fd) == 0);
		state[n] = 0;
	} while (state[0] == 'r' || strtol(state, 0, 10) < 0 || strtol(state, 0, 10) == SYS_futex);
}

static pid_t waiter;

static void *waits_and_tells(void *arg)
{
	__atomic_store_n(&waiter, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
	return waits(arg);
}

// interrupted stops a thread in a call while memory is small. What it goes on with
// is restart_syscall(2), and where the buffers are was said to the first call.
static void interrupted(void)
{
	int ready[2], go[2], status;
	MUST(pipe(ready) == 0 && pipe(go) == 0);
	pid_t child = fork();
	MUST(child >= 0);
	if (child == 0) {
		pthread_t t;
		int p[2];
		char c;
		MUST(pipe(p) == 0);
		waits_for = anon(PAGE);
		*waits_for = (struct pollfd){ .fd = p[0], .events = POLLIN };
		MUST(pthread_create(&t, 0, waits_and_tells, 0) == 0);
		while (!__atomic_load_n(&waiter, __ATOMIC_ACQUIRE))
			sched_yield();
		in_call(waiter);
		MUST(write(ready[1], "", 1) == 1 && read(go[0], &c, 1) == 1);
		for (int round = 0; round < 4; round++) {
			fill();
			check();
		}
		MUST(write(p[1], "", 1) == 1);
		MUST(pthread_join(t, 0) == 0);
		_exit(0);
	}
	char c;
	MUST(read(ready[0], &c, 1) == 1);
	MUST(kill(child, SIGSTOP) == 0);
	MUST(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
	MUST(kill(child, SIGCONT) == 0);
	MUST(write(go[1], "", 1) == 1);
	reap(child, 0);
	for (int i = 0; i < 2; i++)
		MUST(close(ready[i]) == 0 && close(go[i]) == 0);
}

static char *stack_a, *stack_b;
static void *volatile handled_on;
enum { ALTERNATE = 16 * PAGE };

static void note_stack(int number)
{
	(void)number;
	handled_on = __builtin_frame_address(0);
}

static void take_b(int number)
{
	stack_t b = { .ss_sp = stack_b, .ss_size = ALTERNATE };
	(void)number;
	MUST(sigaltstack(&b, 0) == 0);
}

static void handled_in(char *stack)
{
	fill();
	check();
	MUST(raise(SIGUSR1) == 0);
	if ((char *)handled_on < stack || (char *)handled_on >= stack + ALTERNATE)
		die("a handler ran on another stack");
}

// alternate_stacks has a stack for handlers count that is not the one of the last call
// of sigaltstack(2): the end of a handler brings back what was before it. And it has
// one set by a call that writes the old one to where it has read the new one.
static void alternate_stacks(void)
{
	struct sigaction note = { .sa_handler = note_stack, .sa_flags = SA_ONSTACK };
	struct sigaction take = { .sa_handler = take_b };
	char *both = anon(64 * ALTERNATE);
	stack_a = both;
	stack_b = both + 63 * ALTERNATE;
	stack_t s = { .ss_sp = stack_a, .ss_size = ALTERNATE }, none = { .ss_flags = SS_DISABLE };
	MUST(sigaction(SIGUSR1, &note, 0) == 0 && sigaction(SIGUSR2, &take, 0) == 0);
	MUST(sigaltstack(&s, 0) == 0);
	for (int i = 0; i < 3; i++) // more than once before memory is full
		MUST(raise(SIGUSR2) == 0);
	handled_in(stack_a);
	MUST(raise(SIGUSR2) == 0); // where it is
	handled_in(stack_a);
	s = (stack_t){ .ss_sp = stack_b, .ss_size = ALTERNATE };
	MUST(syscall(SYS_sigaltstack, &s, &s) == 0);
	handled_in(stack_b);
	MUST(sigaltstack(&none, 0) == 0);
	MUST(munmap(both, 64 * ALTERNATE) == 0);
}

// rare_calls have their arguments in memory that was not touched for long, some of
// them behind others.
static void rare_calls(void)
{
	enum { WAITV = 449, FCHMODAT2 = 452, N = 8 };
	char *at[N];
	for (int i = 0; i < N; i++) {
		at[i] = anon(PAGE);
		memset(at[i], 0, PAGE);
	}
	struct { uint64_t value, word; uint32_t flags, reserved; } *wait = (void *)at[0];
	wait->value = 1; // which it is not
	wait->word = (uintptr_t)at[1];
	wait->flags = 2 | 128; // of 32 bits, private
	struct sock_fprog *program = (void *)at[2];
	struct sock_filter *filter = (void *)at[3];
	*filter = (struct sock_filter){ BPF_RET | BPF_K, 0, 0, 0xffff };
	*program = (struct sock_fprog){ 1, filter };
	struct { unsigned bytes; int type; unsigned char handle[128]; } *handle = (void *)at[4];
	handle->bytes = 128;
	strcpy(at[5], "/proc/self/exe");
	siginfo_t *info = (void *)at[6];
	info->si_code = SI_QUEUE;
	strcpy(at[7], "/nowhere");
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);
	MUST(s >= 0);

	fill();
	if (syscall(WAITV, wait, 1, 0, 0, 0) == 0 || errno == EFAULT)
		die("futex_waitv: %s", strerror(errno));
	MUST(setsockopt(s, SOL_SOCKET, SO_ATTACH_FILTER, program, sizeof *program) == 0);
	fill();
	int mount;
	if (syscall(SYS_name_to_handle_at, AT_FDCWD, at[5], handle, &mount, 0) != 0 && errno == EFAULT)
		die("name_to_handle_at: %s", strerror(errno));
	signal(SIGUSR1, SIG_IGN);
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGUSR1, info) == 0);
	if (syscall(FCHMODAT2, AT_FDCWD, at[7], 0600, 0) == 0 || errno == EFAULT)
		die("fchmodat2: %s", strerror(errno));
	MUST(close(s) == 0);
	for (int i = 0; i < N; i++)
		MUST(munmap(at[i], PAGE) == 0);
}

// cold_ids has the kernel write the id of a child to memory that was not touched for
// long, which it does not say when it cannot.
static void cold_ids(void)
{
	pid_t *here = anon(PAGE), *there = anon(PAGE);
	*here = *there = 0;
	fill();
	check();
	pid_t child = syscall(SYS_clone, CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, 0, here,
#ifdef __x86_64__
		there, 0
#else
		0, there
#endif
	);
	MUST(child >= 0);
	if (child == 0)
		_exit(*there == getpid() ? 5 : 6);
	if (*here != child)
		die("the child's id is %d, and not told: %d", child, *here);
	reap(child, 5 << 8);
	MUST(munmap(here, PAGE) == 0 && munmap(there, PAGE) == 0);
}
