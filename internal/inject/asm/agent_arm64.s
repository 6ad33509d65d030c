// SPDX-License-Identifier: Apache-2.0
//
// The agent: a loop that performs system calls from shared memory.
//
// Position independent, needs no stack, uses no memory but the shared area.
// Assembled with as(1) and objcopy -O binary; "go test -run TestBlob -update"
// writes the bytes to blob_arm64.go.
//
// The area (see shared_unsafe.go, which has the other side):
	.equ SEQ,     0x00	// number of the last request; the supervisor writes
	.equ ASLEEP,  0x04	// the agent may be in a futex wait on SEQ
	.equ DONE,    0x40	// number of the last request done; the agent writes
	.equ WAITING, 0x44	// the supervisor may be in a futex wait on DONE
	.equ RAN,     0x48	// operations performed in it
	.equ COUNT,   0x80	// operations in the request
	.equ SPIN,    0x84	// looks at SEQ before going to sleep
	.equ OPS,     0x1000	// nr, six arguments, result, flags: 72 bytes each
	.equ OPSIZE,  72
	.equ FUTEX,   98
	.equ WAIT,    0
	.equ WAKE,    1
//
// x19 = the area, w20 = the last request seen (0 at the start).
// A system call destroys x0 only.

	.text
	.globl agent
agent:
	mov	w20, wzr
idle:
	ldr	w21, [x19, #SPIN]
look:
	ldar	w9, [x19]		// SEQ: acquires the request
	cmp	w9, w20
	b.ne	work
	cbz	w21, sleep
	yield
	sub	w21, w21, #1
	b	look

// ASLEEP is set, with a full barrier, before SEQ is looked at for the last
// time; the supervisor writes SEQ, with a full barrier, before it looks at
// ASLEEP. So one of the two sees the other, and no wake-up is lost.
sleep:
	mov	w10, #1
	str	w10, [x19, #ASLEEP]
	dmb	ish
	ldr	w9, [x19, #SEQ]
	cmp	w9, w20
	b.ne	awake
	mov	x0, x19
	mov	x1, #WAIT
	mov	w2, w20
	mov	x3, xzr
	mov	x8, #FUTEX
	svc	#0			// EINTR, EAGAIN: just look again
awake:
	str	wzr, [x19, #ASLEEP]
	b	idle

work:
	mov	w20, w9
	ldr	w22, [x19, #COUNT]
	add	x23, x19, #OPS
	mov	w24, wzr
next:
	cmp	w24, w22
	b.hs	done
	ldr	x8, [x23]
	ldp	x0, x1, [x23, #8]
	ldp	x2, x3, [x23, #24]
	ldp	x4, x5, [x23, #40]
	svc	#0
	str	x0, [x23, #56]
	add	w24, w24, #1
	ldr	w9, [x23, #64]
	add	x23, x23, #OPSIZE
	tbz	w9, #0, next		// stop at an error?
	cmn	x0, #4095
	b.lo	next
done:
	str	w24, [x19, #RAN]
	add	x9, x19, #DONE
	stlr	w20, [x9]		// releases the results
	dmb	ish			// before the look at WAITING, as above
	ldr	w10, [x19, #WAITING]
	cbz	w10, idle
	mov	x0, x9
	mov	x1, #WAKE
	mov	x2, #1
	mov	x8, #FUTEX
	svc	#0
	b	idle
