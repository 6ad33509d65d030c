// SPDX-License-Identifier: Apache-2.0

// Package provider gives an unmodified program the system call userfaultfd
// where the kernel has none, or forbids it.
//
// What a call, a fault or a request comes to is decided by package vkernel: for
// each address space in which the call is used there is a mirror, a process of
// vkernel that knows the registered memory and the state of its pages, but has
// no content. What it decides is carried out in the real process:
//
//   - A page that the mirror lacks has no permissions in the process, and one
//     that is write-protected no permission to write. The thread that touches it
//     gets a SIGSEGV, which we see at its ptrace stop before anybody else, and
//     which becomes a page fault of the mirror.
//   - A page gets its content while it has no permissions, past them, and its
//     permissions then, in one call: no thread sees it half filled.
//   - A descriptor is the reading end of a pipe: see file.
//   - System calls are seen by seccomp filters, which are put on as they are
//     needed: see filters. A call that is to read or write registered memory
//     waits until its pages are there, and is made by the thread itself then.
//   - Memory is changed by an agent of ours in the process: see package inject.
//   - What the program does is told to package collect if there is a trace.
//
// The manager may also be our own process: see [Engine]. The program then has no
// descriptor and does not know, and all of its memory can be missing, which asks for
// more: see upkeep.
//
// Everything runs on the tracer thread, one event after the other, so that there
// are no locks. What has to wait is a job: a coroutine that parks, on that same
// thread: see task.
package provider
