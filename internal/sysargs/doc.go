// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

// Package sysargs knows which memory of a program a system call reads and
// writes, from its number and its arguments.
//
// Whoever serves pages from outside needs it: the kernel does not ask for a
// page that is missing under a buffer of a system call, it fails the call
// with EFAULT. So the memory must be there before the call goes on.
//
// What is told is the most that a call may touch, to the byte: read(2) fills
// as much as there is to read, not always its whole buffer. Lengths that the
// kernel refuses outright yield nothing, or what they would yield if cut to
// what it allows. A nil pointer yields nothing.
//
// Left out is what follows. A buffer of these that lies in memory that is not
// there fails the call with EFAULT, as one that may not be accessed.
//
//   - Calls that are rare and have a way of their own: ptrace, keyctl, bpf,
//     perf_event_open, quotactl, kexec_load, io_uring's, modify_ldt, mount and
//     its like, System V messages and semaphores, message queues, and
//     asynchronous I/O by io_submit.
//   - Pointers inside the argument of an ioctl request, and requests whose number
//     does not say how long the argument is, but for those of terminals.
//
// Not of a call's arguments at all, and so not here: what the kernel writes
// to the stack for a signal handler and rt_sigreturn(2) reads back, the
// thread's area of rseq(2) after its registration, the robust list and the
// clear_child_tid word at a thread's end, the vDSO (which is user code), and
// the memory that mmap, mprotect, madvise, mlock and their like are about.
package sysargs
