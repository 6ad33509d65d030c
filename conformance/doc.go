// SPDX-License-Identifier: Apache-2.0

// Package conformance checks how a userfaultfd behaves, call by call.
//
// [Cases] is a table: each case is one thing that a kernel does, tried with
// each kind of memory that it applies to, on a [Backend]. A backend is the
// running kernel ([Kernel]), or anything else that has processes, threads and
// the system calls of [Call]. [Rows] is the documented behaviour, and each
// row has a case at least.
//
//	s, err := conformance.NewSuite(backend)
//	...
//	report, err := s.RunAll(ctx, nil, nil)
//
// On the kernel, cases run in processes without a Go runtime, so that they
// may touch missing memory at will; see internal/puppet. A case waits for
// what it needs by looking at what threads are at, never by time: only
// failures are slow.
//
// Where the documentation and the kernel part, the kernel is right, and the
// case says so.
package conformance
