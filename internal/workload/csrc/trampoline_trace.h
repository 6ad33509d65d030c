// SPDX-License-Identifier: Apache-2.0
//
// The designs of trampoline.c in which a tracer takes faults and requests at
// ptrace stops: ptrace and ptrace2.

#ifndef TRAMPOLINE_TRACE_H
#define TRAMPOLINE_TRACE_H

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/user.h>

// helper changes permissions for the tracer. It is a process that has the
// program's memory, is not traced, and ends with the thread that made it.
static int helper(void *unused)
{
	(void)unused;
	MUST(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
	for (;;) {
		await(&shared->unlock);
		store(&shared->unlock, 0);
		unprotect(shared->unlocking);
		set(&shared->unlocked);
	}
	return 0;
}

static void trace_begin(void)
{
	enum { STACK = 1 << 16 };
	await(&shared->traced);
	char *stack = anon(STACK);
	MUST(clone(helper, stack + STACK, CLONE_VM | CLONE_UNTRACED, NULL) > 0);
	filter(SECCOMP_RET_TRACE, design->reads_stop);
}

// A called is a system call at which a thread has stopped.
struct called {
	long number;
	uint64_t argument; // its third
	struct user_regs_struct registers;
};

// call_get returns 0 if the thread was killed at its stop, as the handler is in
// its last read.
static int call_get(pid_t thread, struct called *c)
{
	struct iovec v = {&c->registers, sizeof c->registers};
	if (ptrace(PTRACE_GETREGSET, thread, NT_PRSTATUS, &v) != 0) {
		MUST(errno == ESRCH);
		return 0;
	}
#if defined(__x86_64__)
	c->number = c->registers.orig_rax;
	c->argument = c->registers.rdx;
#else
	c->number = c->registers.regs[8];
	c->argument = c->registers.regs[2];
#endif
	return 1;
}

// call_skip makes the call return 0 without having been made.
static void call_skip(pid_t thread, struct called *c)
{
#if defined(__x86_64__)
	c->registers.orig_rax = -1;
	c->registers.rax = 0;
#else
	int none = -1;
	struct iovec n = {&none, sizeof none};
	MUST(ptrace(PTRACE_SETREGSET, thread, NT_ARM_SYSTEM_CALL, &n) == 0);
	c->registers.regs[0] = 0;
#endif
	struct iovec v = {&c->registers, sizeof c->registers};
	MUST(ptrace(PTRACE_SETREGSET, thread, NT_PRSTATUS, &v) == 0);
}

static void go_on(pid_t thread, int signal)
{
	// The thread may have been killed at its stop.
	MUST(ptrace(PTRACE_CONT, thread, NULL, signal) == 0 || errno == ESRCH);
}

// on_request gives a page its content, past what is allowed there, and its
// permissions then, and lets both threads go on.
static void on_request(pid_t handler, pid_t faulter, struct called *call)
{
	struct uffdio_copy c;
	char content[PAGE];
	struct iovec local[] = {{&c, sizeof c}, {content, PAGE}};
	struct iovec remote[] = {{(void *)call->argument, sizeof c}, {NULL, PAGE}};
	MUST(process_vm_readv(handler, &local[0], 1, &remote[0], 1, 0) == (ssize_t)sizeof c);
	decide(c.dst, WAITING, PRESENT);
	remote[1].iov_base = (void *)(uintptr_t)c.src;
	MUST(process_vm_readv(handler, &local[1], 1, &remote[1], 1, 0) == (ssize_t)PAGE);
	c.copy = PAGE;
	remote[1].iov_base = aliased(c.dst);
	MUST(process_vm_writev(handler, local, 2, remote, 2, 0) == (ssize_t)(PAGE + sizeof c));

	shared->unlocking = c.dst;
	store(&shared->unlocked, 0);
	set(&shared->unlock);
	await(&shared->unlocked);
	// Once the first goes on, the program may end, and the handler with it.
	call_skip(handler, call);
	go_on(faulter, 0);
	go_on(handler, 0);
}

// on_fault writes the message for a SIGSEGV that is a fault of ours. The thread
// stays at its stop. It returns 0 if the signal is the program's own.
static int on_fault(pid_t thread)
{
	siginfo_t info;
	MUST(ptrace(PTRACE_GETSIGINFO, thread, NULL, &info) == 0);
	uint64_t address = (uintptr_t)info.si_addr & ~(PAGE - 1);
	if (info.si_code != SEGV_ACCERR || address - (uintptr_t)memory >= pages * PAGE)
		return 0;
	tell(address);
	return 1;
}

// trace_supervise serves the program's stops until it has ended.
static void trace_supervise(pid_t child)
{
	pid_t faulter = 0, thread;
	int status;
	MUST(ptrace(PTRACE_SEIZE, child, NULL,
		    PTRACE_O_TRACECLONE | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL) == 0);
	set(&shared->traced);
	for (;;) {
		MUST((thread = waitpid(-1, &status, __WALL)) > 0);
		if (!WIFSTOPPED(status)) {
			if (thread != child)
				continue; // its handler, which ends before it
			if (status != 0)
				die("the program ended with status %#x", status);
			return;
		}
		int event = status >> 16, signal = WSTOPSIG(status);
		if (event == PTRACE_EVENT_SECCOMP) {
			struct called call;
			if (!call_get(thread, &call))
				continue;
			if (call.number == SYS_ioctl)
				on_request(thread, faulter, &call);
			else
				go_on(thread, 0); // to wait in its read
		} else if (event != 0) {
			go_on(thread, 0);
		} else if (signal == SIGSEGV && on_fault(thread)) {
			faulter = thread;
		} else {
			go_on(thread, signal);
		}
	}
}

#endif
