// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

// Package collect makes the events of a trace: of what a tracer sees of a
// program, the calls about userfaultfds, who has which, and what the processes
// do that have one. It tells a sink of package uffdtrace.
//
// How the calls are seen, and who answers them, is the business of a [Ground]:
// package watch sees those that the kernel answers, package provider answers
// them itself. A trace is the same on both.
//
// That a number is a userfaultfd is asked of the Ground at every call; what the
// package remembers of descriptors only names them.
//
// Everything runs on the tracer's thread, so that there is no lock.
package collect
