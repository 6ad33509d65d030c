// SPDX-License-Identifier: Apache-2.0
//
// trampoline [--wrong] N [DESIGN...]
//
// What a page fault that a program serves itself costs where the kernel's
// userfaultfd(2) is not there and something else must stand in for it. In each
// design a thread touches N missing pages, one after the other; a handler
// thread of the same program reads a message of 32 bytes, gives the page's
// content by an ioctl, and the first thread goes on. All is bound to one
// processor. The handler is the same in every design, and knows of none.
//
//	kernel   userfaultfd: a blocking read, UFFDIO_COPY
//	futex    a SIGSEGV handler in the program asks a supervisor, a process of
//	         its own, by shared memory and futex; the ioctl is a system call
//	         that a filter turns into SIGSYS, whose handler asks it as well. It
//	         decides, writes messages into a pipe and copies content; the
//	         SIGSYS handler changes permissions and wakes the thread
//	local    the same without a supervisor: the two signal handlers decide
//	ptrace   three ptrace stops: the SIGSEGV, the read, the ioctl. The tracer
//	         does the rest, but for permissions, which a helper changes that
//	         shares the program's memory. It is the floor of what `faultline
//	         provide` does
//	ptrace2  the same with two stops: the read is let through
//
// All but the kernel have a memfd mapped twice: without permissions where the
// program touches it, and as an alias by which content is written. There the
// access itself costs a small fault more than with the kernel's call.
//
// Prints a line of JSON for each design, all of them if none is named: times of
// one touch in nanoseconds, or what it lacks. Every word of every page is
// checked. With --wrong the handler gives the last page the content of another,
// and the program dies.
//
// What the designs leave out, and a provider could not:
//
//   - The signals are the program's own. Its handlers of SIGSEGV and SIGSYS, its
//     sigaction, sigaltstack, sigprocmask, sigwait and signalfd would all have to
//     be virtualised. A signal that is blocked when it is forced kills: a thread
//     that touches a page with SIGSEGV in its mask, as in any handler with a full
//     mask, dies in these designs. So its mask may never have them; yet it must
//     read them there.
//   - Both threads have alternate stacks. A program's threads may have none, or
//     one too small for a frame (2 KiB, 11 KiB with AMX), or be on it when they
//     touch a page. Go, for one, sets its own.
//   - A signal of the program's that comes while a trampoline waits. With the
//     kernel's call its handler runs at once, and the access is made again after
//     it. Here it runs above the trampoline's frame, and may longjmp out of it
//     while the supervisor thinks that the thread waits.
//   - Faults that are nobody's instruction: system calls given a missing page
//     return EFAULT here. A filter must hold them back until the page is there.
//   - vfork and clone without CLONE_THREAD share the memory, handlers and state,
//     but not the process that the supervisor knows; fork copies the trampoline's
//     state and leaves the other end of it behind; exec takes handlers away but
//     keeps filters, and the next program's first ioctl dies of SIGSYS.
//   - Under ptrace every signal is a stop before its handler runs: a process that
//     is traced gains nothing. A process would have to be detached, and then
//     nobody sees it fork, exec, change its memory or end.
//   - State in the program's memory, which decides in local, can be overwritten
//     by the program, and so can a request.
//   - Private memory stays private when it forks; a memfd is shared.
//   - Pages are touched in order, so the mappings are two. Permissions of pages
//     here and there make a mapping for each, of which a process has 65530.

#define DIE_STATUS 1
#include "check.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

// No design that works takes as long, in seconds.
enum { PATIENCE = 60 };

// A design is a way to serve a fault.
struct design {
	const char *name;
	void (*begin)(void);            // in the program, before it makes its handler thread
	void (*supervise)(pid_t child); // in the parent; returns once the child has ended
	int supervised;                 // a process other than the program decides
	int reads_stop;                 // each read of the handler is a ptrace stop
};

static const struct design *design;
static uint64_t pages;          // number of pages that are touched
static char *memory;            // where they are touched
static char *alias;             // the same, with permissions
static int channel[2] = {-1, -1}; // messages come by [0]; the kernel's descriptor, or a pipe
static int wrong;
static uint64_t given[WORDS] __attribute__((aligned(PAGE))); // what the handler gives

// What the processes of a design share. A word is waited for by a futex while
// it is 0.
struct shared {
	uint32_t bell;     // counts what was asked of the supervisor
	uint32_t fault;    // asked: a thread has touched `touched`
	uint32_t call;     // asked: the handler wants `copy`
	uint32_t ended;    // the program is done
	uint32_t answered; // the supervisor has dealt with call
	uint32_t open;     // the page that was touched last has its permissions
	uint32_t traced;   // the tracer has seized the program
	uint32_t unlock;   // asked of the helper: give `unlocking` its permissions
	uint32_t unlocked; // the helper has done it
	uint64_t touched;
	uint64_t unlocking;
	struct uffdio_copy copy;
	uint8_t state[]; // of each page
};

// The states of a page.
enum { MISSING, WAITING, PRESENT };

static struct shared *shared;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

static uint32_t load(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint32_t *word, uint32_t v)
{
	__atomic_store_n(word, v, __ATOMIC_RELEASE);
}

// Words that one process has to itself are found faster.
static int private_if_alone(void)
{
	return design->supervised ? 0 : FUTEX_PRIVATE_FLAG;
}

static void wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE | private_if_alone(), 1, NULL, NULL, 0);
}

// sleep_while waits unless *word is no longer v, for a second at most: who asks
// may have died.
static void sleep_while(uint32_t *word, uint32_t v)
{
	struct timespec second = {1, 0};
	syscall(SYS_futex, word, FUTEX_WAIT | private_if_alone(), v, &second, NULL, 0);
}

static void set(uint32_t *word)
{
	store(word, 1);
	wake(word);
}

static void await(uint32_t *word)
{
	while (load(word) == 0)
		sleep_while(word, 0);
}

// decide moves a page from one state to the next, or dies: what userfaultfd
// would refuse, this program never asks for.
static void decide(uint64_t address, uint8_t from, uint8_t to)
{
	uint64_t page = (address - (uintptr_t)memory) / PAGE;
	if (page >= pages || !__atomic_compare_exchange_n(&shared->state[page], &from, to, 0,
							 __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		die("page %lu is in state %d", page, from);
}

// tell decides what a fault comes to, a message for the handler.
static void tell(uint64_t address)
{
	decide(address, MISSING, WAITING);
	struct uffd_msg m = {.event = UFFD_EVENT_PAGEFAULT, .arg.pagefault.address = address};
	MUST(write(channel[1], &m, sizeof m) == sizeof m);
}

// aliased returns where content for an address is written.
static char *aliased(uint64_t address)
{
	return alias + (address - (uintptr_t)memory);
}

static void unprotect(uint64_t address)
{
	MUST(mprotect((void *)address, PAGE, PROT_READ | PROT_WRITE) == 0);
}

// wait_for returns once the child has ended.
static void wait_for(pid_t child)
{
	int status;
	MUST(waitpid(child, &status, 0) == child);
	if (status != 0)
		die("the program ended with status %#x", status);
}

#include "trampoline_filter.h"
#include "trampoline_signals.h"
#include "trampoline_trace.h"

// kernel_begin opens the kernel's descriptor, or says that there is none.
static void kernel_begin(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	channel[0] = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (channel[0] < 0) {
		printf("{\"design\":\"kernel\",\"lacking\":\"userfaultfd: %s\"}\n", strerror(errno));
		fflush(stdout);
		_exit(0);
	}
	MUST(ioctl(channel[0], UFFDIO_API, &api) == 0);
	MUST(madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) == 0);
	struct uffdio_register r = {.range = {(uintptr_t)memory, pages * PAGE},
		.mode = UFFDIO_REGISTER_MODE_MISSING};
	MUST(ioctl(channel[0], UFFDIO_REGISTER, &r) == 0);
}

static const struct design designs[] = {
	{"kernel", kernel_begin, wait_for, 0, 0},
	{"futex", signals_begin, futex_supervise, 1, 0},
	{"local", signals_begin, wait_for, 0, 0},
	{"ptrace", trace_begin, trace_supervise, 1, 1},
	{"ptrace2", trace_begin, trace_supervise, 1, 0},
	{NULL, NULL, NULL, 0, 0},
};

// serve is the handler thread. It knows userfaultfd(2) and nothing else.
static void *serve(void *unused)
{
	(void)unused;
	signals_stack();
	for (;;) {
		struct uffd_msg m;
		MUST(read(channel[0], &m, sizeof m) == sizeof m && m.event == UFFD_EVENT_PAGEFAULT);
		uint64_t address = m.arg.pagefault.address & ~(PAGE - 1);
		uint64_t page = (address - (uintptr_t)memory) / PAGE;
		given[0] = (page - (wrong && page == pages - 1)) ^ MAGIC;
		struct uffdio_copy c = {.dst = address, .src = (uintptr_t)given, .len = PAGE};
		MUST(ioctl(channel[0], UFFDIO_COPY, &c) == 0 && c.copy == (int64_t)PAGE);
	}
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

// program is what runs in the child: it touches the pages and times that.
static void program(void)
{
	uint64_t *took = anon(pages * sizeof *took), want[WORDS];
	memset(took, 1, pages * sizeof *took); // no faults of its own later
	page_write(given, 0, 1);
	memcpy(want, given, sizeof want);
	signals_stack();
	design->begin();
	pthread_t handler;
	MUST((errno = pthread_create(&handler, NULL, serve, NULL)) == 0);
	for (uint64_t i = 0; i < pages; i++) {
		volatile uint64_t *word = (uint64_t *)(memory + i * PAGE);
		uint64_t before = now(), saw = *word;
		took[i] = now() - before;
		want[0] = i ^ MAGIC;
		if (saw != want[0] || memcmp(memory + i * PAGE, want, PAGE))
			die("page %lu has the content of another", i);
	}
	qsort(took, pages, sizeof *took, by_value);
	printf("{\"design\":\"%s\",\"faults\":%lu,\"p50_ns\":%lu,\"p90_ns\":%lu}\n",
	       design->name, pages, took[pages / 2], took[pages * 9 / 10]);
	fflush(stdout);
	store(&shared->ended, 1);
	ring();
	_exit(0);
}

// map_memory maps what the program touches. The kernel's call has it private,
// as a program would.
static void map_memory(void)
{
	uint64_t size = pages * PAGE;
	if (design->begin == kernel_begin) {
		memory = anon(size);
		return;
	}
	int f = memfd_create("trampoline", MFD_CLOEXEC);
	MUST(f >= 0 && ftruncate(f, size) == 0);
	memory = mmap(NULL, size, PROT_NONE, MAP_SHARED, f, 0);
	alias = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	MUST(memory != MAP_FAILED && alias != MAP_FAILED);
	close(f);
	MUST(pipe2(channel, O_CLOEXEC) == 0);
}

// run runs a design in a process of its own, which dies with this one.
static void run(void)
{
	step = design->name;
	alias = NULL;
	channel[0] = channel[1] = -1;
	map_memory();
	size_t size = sizeof *shared + pages;
	shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(shared != MAP_FAILED);
	memset(shared->state, MISSING, pages);
	pid_t self = getpid(), child = fork();
	MUST(child >= 0);
	if (child == 0) {
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
		if (getppid() != self)
			_exit(1);
		program();
	}
	alarm(PATIENCE);
	design->supervise(child);
	alarm(0);
	MUST(munmap(shared, size) == 0 && munmap(memory, pages * PAGE) == 0);
	if (alias != NULL)
		MUST(munmap(alias, pages * PAGE) == 0 && close(channel[0]) == 0 && close(channel[1]) == 0);
}

static void late(int unused)
{
	(void)unused;
	die("no end after %d s", PATIENCE);
}

// pin keeps this process, and those it makes, on the first processor it may use.
static void pin(void)
{
	cpu_set_t allowed, one;
	int cpu = 0;
	MUST(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
	while (!CPU_ISSET(cpu, &allowed))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	MUST(sched_setaffinity(0, sizeof one, &one) == 0);
}

int main(int argc, char **argv)
{
	argv++;
	if (argc > 1 && !strcmp(*argv, "--wrong"))
		wrong = 1, argv++;
	pages = *argv ? number(*argv++, "N") : 0;
	if (pages == 0 || pages > 1 << 20) {
		fprintf(stderr, "usage: trampoline [--wrong] N [DESIGN...], N up to %d\n", 1 << 20);
		return 2;
	}
	pin();
	signal(SIGALRM, late);
	for (char **name = argv; *name; name++) {
		for (design = designs; design->name && strcmp(design->name, *name); design++)
			;
		if (!design->name) {
			fprintf(stderr, "trampoline: no design %s\n", *name);
			return 2;
		}
		run();
	}
	for (design = designs; !*argv && design->name; design++)
		run();
	return 0;
}
