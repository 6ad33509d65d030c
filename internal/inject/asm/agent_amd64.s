# SPDX-License-Identifier: Apache-2.0
#
# The agent: a loop that performs system calls from shared memory.
#
# Position independent, needs no stack, uses no memory but the shared area.
# Assembled with as(1) and objcopy -O binary; "go test -run TestBlob -update"
# writes the bytes to blob_amd64.go.
#
# The area (see shared_unsafe.go, which has the other side):
	.equ SEQ,     0x00	# number of the last request; the supervisor writes
	.equ ASLEEP,  0x04	# the agent may be in a futex wait on SEQ
	.equ DONE,    0x40	# number of the last request done; the agent writes
	.equ WAITING, 0x44	# the supervisor may be in a futex wait on DONE
	.equ RAN,     0x48	# operations performed in it
	.equ COUNT,   0x80	# operations in the request
	.equ SPIN,    0x84	# looks at SEQ before going to sleep
	.equ OPS,     0x1000	# nr, six arguments, result, flags: 72 bytes each
	.equ OPSIZE,  72
	.equ FUTEX,   202
	.equ WAIT,    0
	.equ WAKE,    1
#
# rbx = the area, r12d = the last request seen (0 at the start).
# A system call destroys rax, rcx and r11 only.

	.text
	.globl agent
agent:
	xorl	%r12d, %r12d
idle:
	movl	SPIN(%rbx), %ecx
look:
	movl	SEQ(%rbx), %eax		# a load is an acquire on this machine
	cmpl	%r12d, %eax
	jne	work
	testl	%ecx, %ecx
	jz	sleep
	pause
	decl	%ecx
	jmp	look

# ASLEEP is set, with a full barrier, before SEQ is looked at for the last
# time; the supervisor writes SEQ, with a full barrier, before it looks at
# ASLEEP. So one of the two sees the other, and no wake-up is lost.
sleep:
	movl	$1, %eax
	xchgl	%eax, ASLEEP(%rbx)
	cmpl	%r12d, SEQ(%rbx)
	jne	awake
	leaq	SEQ(%rbx), %rdi
	movl	$WAIT, %esi
	movl	%r12d, %edx
	xorl	%r10d, %r10d
	movl	$FUTEX, %eax
	syscall				# EINTR, EAGAIN: just look again
awake:
	movl	$0, ASLEEP(%rbx)
	jmp	idle

work:
	movl	%eax, %r12d
	movl	COUNT(%rbx), %r13d
	leaq	OPS(%rbx), %r14
	xorl	%r15d, %r15d
next:
	cmpl	%r13d, %r15d
	jae	done
	movq	0(%r14), %rax
	movq	8(%r14), %rdi
	movq	16(%r14), %rsi
	movq	24(%r14), %rdx
	movq	32(%r14), %r10
	movq	40(%r14), %r8
	movq	48(%r14), %r9
	syscall
	movq	%rax, 56(%r14)
	incl	%r15d
	testl	$1, 64(%r14)		# stop at an error?
	leaq	OPSIZE(%r14), %r14
	jz	next
	cmpq	$-4095, %rax
	jb	next
done:
	movl	%r15d, RAN(%rbx)
	movl	%r12d, %eax
	xchgl	%eax, DONE(%rbx)	# releases the results; full barrier, as above
	cmpl	$0, WAITING(%rbx)
	je	idle
	leaq	DONE(%rbx), %rdi
	movl	$WAKE, %esi
	movl	$1, %edx
	movl	$FUTEX, %eax
	syscall
	jmp	idle
