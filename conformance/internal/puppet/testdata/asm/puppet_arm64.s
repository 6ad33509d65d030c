// SPDX-License-Identifier: Apache-2.0
//
// The puppet: a thread that does what its slot of shared memory says.
//
// Position independent, uses no stack of its own and no memory but its slot
// and what a command names. Assembled with as(1) and objcopy -O binary;
// "go test -run TestBlob -update" writes the bytes to blob_arm64.go.
//
// The start of a slot (see area_unsafe.go, which has the other side):
	.equ SEQ,     0x00	// number of the last command; the other side writes
	.equ DONE,    0x04	// number of the last command done; we write
	.equ OP,      0x08	// what to do
	.equ TID,     0x0c	// of the thread that serves the slot
	.equ PID,     0x10
	.equ SIGNAL,  0x14	// SIGSEGV or SIGBUS that ended the command, or 0
	.equ CODE,    0x18	// its si_code
	.equ COUNT,   0x1c	// other signals handled so far
	.equ NR,      0x20	// system call
	.equ ARGS,    0x28	// its arguments, or those of an access
	.equ RESULT,  0x58
	.equ ADDR,    0x60	// si_addr
//
	.equ AREAFD,  3
	.equ STRIDE,  16	// log2 of the distance between slots
//
// x19 = the slot, w20 = the last command seen. A system call destroys x0
// only; a signal handler finds x19 as it was.

	.text
// Three ways in, 16 bytes apart: the program's start, the signal handler and
// what the handler returns to.
	b	start
	.balign	16
	b	handler
	.balign	16
	mov	x8, #139		// rt_sigreturn
	svc	#0

// argc - 1 is the number of the slot: no string needs to be read.
	.balign	16
start:
	ldr	x19, [sp]
	sub	x19, x19, #1
	lsl	x19, x19, #STRIDE
	mov	x21, #0x1000000000	// the area
	add	x19, x19, x21
	mov	x0, x21
	mov	x1, #0x4000000		// its length
	mov	x2, #3			// PROT_READ | PROT_WRITE
	mov	x3, #0x11		// MAP_SHARED, and
	movk	x3, #0x10, lsl #16	// MAP_FIXED_NOREPLACE
	mov	x4, #AREAFD
	mov	x5, xzr
	mov	x8, #222		// mmap
	svc	#0
	cmp	x0, x21
	b.eq	hello
	mov	x0, #111		// nothing to report to
	mov	x8, #94			// exit_group
	svc	#0

// A thread is there, by start, by spawn or by fork: say so as the answer to
// the command that is in its slot.
hello:
	mov	x8, #178		// gettid
	svc	#0
	str	w0, [x19, #TID]
	mov	x8, #172		// getpid
	svc	#0
	str	w0, [x19, #PID]
	ldar	w20, [x19]		// SEQ
	str	wzr, [x19, #SIGNAL]
	mov	x0, xzr

publish:
	str	x0, [x19, #RESULT]
recover:
	add	x0, x19, #DONE
	stlr	w20, [x0]		// releases the result
	mov	x1, #1			// FUTEX_WAKE
	mov	x2, #0x7fffffff
	mov	x8, #98			// futex
	svc	#0
idle:
	ldar	w9, [x19]		// SEQ: acquires the command
	cmp	w9, w20
	b.ne	work
	mov	x0, x19
	mov	x1, xzr			// FUTEX_WAIT
	mov	w2, w20
	mov	x3, xzr
	mov	x8, #98
	svc	#0			// EINTR, EAGAIN: just look again
	b	idle

work:
	mov	w20, w9
	str	wzr, [x19, #SIGNAL]
	ldr	w9, [x19, #OP]
	ldp	x0, x1, [x19, #ARGS]
	ldr	x2, [x19, #ARGS+16]
	cbz	w9, call
	cmp	w9, #1
	b.eq	clone
	cmp	w9, #2
	b.eq	load8
	cmp	w9, #3
	b.eq	load64
	cmp	w9, #4
	b.eq	store8
	cmp	w9, #5
	b.eq	store64
	cmp	w9, #6
	b.eq	cas
	cmp	w9, #7
	b.eq	copy
	mov	x0, #-38		// ENOSYS
	b	publish

call:
	ldp	x3, x4, [x19, #ARGS+24]
	ldr	x5, [x19, #ARGS+40]
	ldr	x8, [x19, #NR]
	svc	#0
	b	publish

// clone(flags): the new task serves the slot at the second argument.
clone:
	mov	x21, x1
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	mov	x4, xzr
	mov	x8, #220
	svc	#0
	cbnz	x0, publish
	mov	x19, x21
	b	hello

load8:
	ldrb	w0, [x0]
	b	publish
load64:
	ldr	x0, [x0]
	b	publish
store8:
	strb	w1, [x0]
	mov	x0, xzr
	b	publish
store64:
	str	x1, [x0]
	mov	x0, xzr
	b	publish
cas:
	ldaxr	x9, [x0]
	cmp	x9, x1
	b.ne	1f
	stlxr	w10, x2, [x0]
	cbnz	w10, cas
1:	clrex
	mov	x0, x9
	b	publish
copy:
	cbz	x2, 2f
1:	ldrb	w9, [x1], #1
	strb	w9, [x0], #1
	subs	x2, x2, #1
	b.ne	1b
2:	mov	x0, xzr
	b	publish

// handler(x0 = signal, x1 = siginfo, x2 = ucontext)
handler:
	cmp	w0, #11			// SIGSEGV
	b.eq	fault
	cmp	w0, #7			// SIGBUS
	b.eq	fault
	ldr	w9, [x19, #COUNT]
	add	w9, w9, #1
	str	w9, [x19, #COUNT]
	ret
fault:
	str	w0, [x19, #SIGNAL]
	ldr	w9, [x1, #8]
	str	w9, [x19, #CODE]
	ldr	x9, [x1, #16]
	str	x9, [x19, #ADDR]
	adr	x9, recover
	str	x9, [x2, #440]		// the saved pc
	ret
