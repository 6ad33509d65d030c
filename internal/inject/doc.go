// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

// Package inject runs system calls inside another process.
//
// There are three layers, each standing on the one before:
//
//   - [Session] borrows a ptrace-stopped thread: it saves the registers and
//     the signal mask, runs system calls one by one in that thread, and puts
//     everything back so that the program cannot tell.
//   - [Agent] is a task of our own in the program's address space, planted by
//     a session. It needs no ptrace stop to work: it takes batches of system
//     calls from shared memory, several hundred in one round trip.
//   - [Filter] is the seccomp program that makes the kernel report the calls
//     by which a program gets new anonymous memory.
//
// ptrace belongs to one OS thread: everything here that takes or uses a
// [Session] must be called on the locked thread that seized the program.
// An [Agent], once planted, may be used from any goroutine.
//
// The traced threads must have been seized (PTRACE_SEIZE, not PTRACE_ATTACH)
// with [Options], of which PTRACE_O_EXITKILL is what makes an agent die with its
// supervisor.
//
// This package waits for the threads it was given and for the tasks that it
// creates, by id, and never for "any" child. It never reaps a thread that is
// not its own: when the borrowed thread dies, its exit status is left for
// the tracer's own wait.
package inject
