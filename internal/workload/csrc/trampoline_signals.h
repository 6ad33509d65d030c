// SPDX-License-Identifier: Apache-2.0
//
// The designs of trampoline.c in which signal handlers in the program itself,
// the trampolines, take faults and requests: futex and local.

#ifndef TRAMPOLINE_SIGNALS_H
#define TRAMPOLINE_SIGNALS_H

#include <ucontext.h>

// signals_stack gives the calling thread an alternate stack.
static void signals_stack(void)
{
	enum { SIZE = 1 << 16 };
	stack_t stack = {.ss_sp = anon(SIZE), .ss_size = SIZE};
	memset(stack.ss_sp, 0, SIZE);
	MUST(sigaltstack(&stack, NULL) == 0);
}

// ring makes the supervisor look.
static void ring(void)
{
	__atomic_add_fetch(&shared->bell, 1, __ATOMIC_ACQ_REL);
	wake(&shared->bell);
}

// on_segv is the trampoline of faults. It returns once the page is there, and
// the access is made again.
static void on_segv(int signal, siginfo_t *info, void *unused)
{
	(void)unused;
	int saved = errno;
	uint64_t address = (uintptr_t)info->si_addr & ~(PAGE - 1);
	if (address - (uintptr_t)memory >= pages * PAGE) {
		struct sigaction plain = {.sa_handler = SIG_DFL};
		sigaction(signal, &plain, NULL); // the access is made again, and kills
		return;
	}
	store(&shared->open, 0);
	if (design->supervised) {
		shared->touched = address;
		store(&shared->fault, 1);
		ring();
	} else {
		tell(address);
	}
	await(&shared->open);
	errno = saved;
}

// on_sys is the trampoline of requests, and sets what the call returns.
static void on_sys(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	int saved = errno;
	mcontext_t *registers = &((ucontext_t *)context)->uc_mcontext;
#if defined(__x86_64__)
	struct uffdio_copy *c = (void *)registers->gregs[REG_RDX];
	registers->gregs[REG_RAX] = 0;
#else
	struct uffdio_copy *c = (void *)registers->regs[2];
	registers->regs[0] = 0;
#endif
	if (design->supervised) {
		shared->copy = *c;
		store(&shared->answered, 0);
		store(&shared->call, 1);
		ring();
		await(&shared->answered);
	} else {
		decide(c->dst, WAITING, PRESENT);
		memcpy(aliased(c->dst), (void *)c->src, PAGE);
	}
	// No thread has seen the page half filled, and none waits for another.
	unprotect(c->dst);
	set(&shared->open);
	c->copy = PAGE;
	errno = saved;
}

static void signals_begin(void)
{
	struct sigaction segv = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	struct sigaction sys = {.sa_sigaction = on_sys, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	MUST(sigaction(SIGSEGV, &segv, NULL) == 0 && sigaction(SIGSYS, &sys, NULL) == 0);
	filter(SECCOMP_RET_TRAP, 0);
}

// fetch copies a page from the program's memory past what it is allowed there.
static void fetch(pid_t child, const struct uffdio_copy *c)
{
	struct iovec to = {aliased(c->dst), PAGE}, from = {(void *)(uintptr_t)c->src, PAGE};
	MUST(process_vm_readv(child, &to, 1, &from, 1, 0) == (ssize_t)PAGE);
}

// futex_supervise does what it is asked until the program has ended.
static void futex_supervise(pid_t child)
{
	for (;;) {
		// Before the looking: who asks after it changes the bell.
		uint32_t seen = load(&shared->bell);
		if (__atomic_exchange_n(&shared->fault, 0, __ATOMIC_ACQ_REL)) {
			tell(shared->touched);
		} else if (__atomic_exchange_n(&shared->call, 0, __ATOMIC_ACQ_REL)) {
			decide(shared->copy.dst, WAITING, PRESENT);
			fetch(child, &shared->copy);
			set(&shared->answered);
		} else if (load(&shared->ended)) {
			break;
		} else {
			siginfo_t end = {0};
			sleep_while(&shared->bell, seen);
			if (load(&shared->bell) != seen)
				continue;
			MUST(waitid(P_PID, child, &end, WEXITED | WNOHANG | WNOWAIT) == 0);
			if (end.si_pid == child)
				break;
		}
	}
	wait_for(child);
}

#endif
