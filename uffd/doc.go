// SPDX-License-Identifier: Apache-2.0

// Package uffd drives userfaultfd(2) descriptors: it makes them, takes them
// over from other processes, reads their messages and resolves faults.
//
// An [FD] has one method per ioctl, in one style: plain values in, the number
// of bytes done and a syscall.Errno out. They allocate nothing and do not
// involve the scheduler, so that a thread that serves faults is not held up
// by the rest of the program. Where an error is wanted, [Check] makes one
// that says what failed, where, and what to do; [OutcomeOf] tells the errnos
// that are part of normal service from those that are failures.
//
// The trap: memory that is served by this process must not be touched by its
// Go code. A goroutine that faults in plain Go code cannot be preempted, and
// a garbage collection that waits for it stops the goroutine that would
// serve the fault. Serve other processes, or touch the memory only from
// system calls such as madvise(2) with MADV_POPULATE_READ.
//
// The file behind a descriptor is never closed by the garbage collector: when
// its last descriptor goes, waiting threads go on with pages of zeros.
package uffd
