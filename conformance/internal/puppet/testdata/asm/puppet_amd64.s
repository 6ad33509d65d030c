# SPDX-License-Identifier: Apache-2.0
#
# The puppet: a thread that does what its slot of shared memory says.
#
# Position independent, uses no stack of its own and no memory but its slot
# and what a command names. Assembled with as(1) and objcopy -O binary;
# "go test -run TestBlob -update" writes the bytes to blob_amd64.go.
#
# The start of a slot (see area_unsafe.go, which has the other side):
	.equ SEQ,     0x00	# number of the last command; the other side writes
	.equ DONE,    0x04	# number of the last command done; we write
	.equ OP,      0x08	# what to do
	.equ TID,     0x0c	# of the thread that serves the slot
	.equ PID,     0x10
	.equ SIGNAL,  0x14	# SIGSEGV or SIGBUS that ended the command, or 0
	.equ CODE,    0x18	# its si_code
	.equ COUNT,   0x1c	# other signals handled so far
	.equ NR,      0x20	# system call
	.equ ARGS,    0x28	# its arguments, or those of an access
	.equ RESULT,  0x58
	.equ ADDR,    0x60	# si_addr
#
	.equ AREA,    0x1000000000
	.equ AREALEN, 0x4000000
	.equ AREAFD,  3
	.equ STRIDE,  16	# log2 of the distance between slots
#
# rbx = the slot, r12d = the last command seen. A system call destroys rax,
# rcx and r11 only; a signal handler finds rbx as it was.

	.text
# Three ways in, 16 bytes apart: the program's start, the signal handler and
# what the handler returns to.
	jmp	start
	.balign	16
	jmp	handler
	.balign	16
	movl	$15, %eax		# rt_sigreturn
	syscall

# argc - 1 is the number of the slot: no string needs to be read.
	.balign	16
start:
	movq	(%rsp), %rbx
	decq	%rbx
	shlq	$STRIDE, %rbx
	movabsq	$AREA, %rdi
	addq	%rdi, %rbx
	movl	$AREALEN, %esi
	movl	$3, %edx		# PROT_READ | PROT_WRITE
	movl	$0x100011, %r10d	# MAP_SHARED | MAP_FIXED_NOREPLACE
	movl	$AREAFD, %r8d
	xorl	%r9d, %r9d
	movl	$9, %eax		# mmap
	syscall
	cmpq	%rdi, %rax
	je	hello
	movl	$111, %edi		# nothing to report to
	movl	$231, %eax		# exit_group
	syscall

# A thread is there, by start, by spawn or by fork: say so as the answer to
# the command that is in its slot.
hello:
	movl	$186, %eax		# gettid
	syscall
	movl	%eax, TID(%rbx)
	movl	$39, %eax		# getpid
	syscall
	movl	%eax, PID(%rbx)
	movl	SEQ(%rbx), %r12d
	movl	$0, SIGNAL(%rbx)
	xorl	%eax, %eax

publish:
	movq	%rax, RESULT(%rbx)
recover:
	movl	%r12d, %eax
	xchgl	%eax, DONE(%rbx)	# releases the result
	leaq	DONE(%rbx), %rdi
	movl	$1, %esi		# FUTEX_WAKE
	movl	$0x7fffffff, %edx
	movl	$202, %eax		# futex
	syscall
idle:
	movl	SEQ(%rbx), %eax		# acquires the command
	cmpl	%r12d, %eax
	jne	work
	leaq	SEQ(%rbx), %rdi
	xorl	%esi, %esi		# FUTEX_WAIT
	movl	%r12d, %edx
	xorl	%r10d, %r10d
	movl	$202, %eax
	syscall				# EINTR, EAGAIN: just look again
	jmp	idle

work:
	movl	%eax, %r12d
	movl	$0, SIGNAL(%rbx)
	movl	OP(%rbx), %eax
	movq	ARGS(%rbx), %rdi
	movq	ARGS+8(%rbx), %rsi
	movq	ARGS+16(%rbx), %rdx
	cmpl	$0, %eax
	je	call
	cmpl	$1, %eax
	je	clone
	cmpl	$2, %eax
	je	load8
	cmpl	$3, %eax
	je	load64
	cmpl	$4, %eax
	je	store8
	cmpl	$5, %eax
	je	store64
	cmpl	$6, %eax
	je	cas
	cmpl	$7, %eax
	je	copy
	movq	$-38, %rax		# ENOSYS
	jmp	publish

call:
	movq	ARGS+24(%rbx), %r10
	movq	ARGS+32(%rbx), %r8
	movq	ARGS+40(%rbx), %r9
	movq	NR(%rbx), %rax
	syscall
	jmp	publish

# clone(flags): the new task serves the slot at the second argument.
clone:
	movq	%rsi, %r13
	xorl	%esi, %esi
	xorl	%edx, %edx
	xorl	%r10d, %r10d
	xorl	%r8d, %r8d
	movl	$56, %eax
	syscall
	testq	%rax, %rax
	jnz	publish
	movq	%r13, %rbx
	jmp	hello

load8:
	movzbl	(%rdi), %eax
	jmp	publish
load64:
	movq	(%rdi), %rax
	jmp	publish
store8:
	movb	%sil, (%rdi)
	xorl	%eax, %eax
	jmp	publish
store64:
	movq	%rsi, (%rdi)
	xorl	%eax, %eax
	jmp	publish
cas:
	movq	%rsi, %rax
	lock cmpxchgq %rdx, (%rdi)
	jmp	publish
copy:
	movq	%rdx, %rcx
	rep movsb
	xorl	%eax, %eax
	jmp	publish

# handler(rdi = signal, rsi = siginfo, rdx = ucontext)
handler:
	cmpl	$11, %edi		# SIGSEGV
	je	fault
	cmpl	$7, %edi		# SIGBUS
	je	fault
	lock incl COUNT(%rbx)
	ret
fault:
	movl	%edi, SIGNAL(%rbx)
	movl	8(%rsi), %eax
	movl	%eax, CODE(%rbx)
	movq	16(%rsi), %rax
	movq	%rax, ADDR(%rbx)
	leaq	recover(%rip), %rax
	movq	%rax, 168(%rdx)		# the saved rip
	ret
