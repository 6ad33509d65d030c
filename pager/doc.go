// SPDX-License-Identifier: Apache-2.0

// Package pager is the manager side of userfaultfd(2): it resolves the page
// faults of address spaces that it serves, and keeps their resident pages
// under one common limit by moving cold pages to a store.
//
// A [Pager] has one budget, one store and one evictor. Every address space
// that it serves is a [Space]: a descriptor, a table of page states, and a
// goroutine on a thread of its own that is the only one to read the
// descriptor and the only one to install pages. That single owner is what
// keeps the rules short:
//
//   - All queued messages are drained before any fault is served, and the
//     events among them are applied first (a fault may be younger than an
//     UNMAP behind it).
//   - A page is fetched once, however many threads wait for it: further
//     faults on a page in state loading are dropped, because the install
//     wakes every waiter of its range.
//   - EAGAIN from an install means that the layout is changing. The fault is
//     parked, the queue is drained, and the fault is retried until
//     [Config.Patience] has passed; then the page is poisoned and the user told.
//   - EEXIST does not wake the waiter, so it is always followed by a wake.
//   - A store read that would wait for a device goes to a worker; the thread
//     goes on with other pages.
//   - A page that cannot be had is poisoned: SIGBUS, never zeros.
//
// Where descriptor and mover have a thread on which alone they can do anything, the
// space can be served there, by its turns ([SpaceConfig.On], [Space.Turn]); the
// goroutine then only sees to what has to be done later.
//
// The evictor takes pages out through a [Mover], which must be atomic against
// the threads of the space. It never waits for a serving thread while it
// holds a lock that such a thread takes.
//
// # Lock order
//
//	Space.batchMu          one eviction batch, from marking to finished
//		Pager.mu           all page tables and regions, and the queue
//
// The serving thread takes batchMu only to copy a table at fork, and the
// evictor asks nothing of the serving thread while it holds it; where the mover
// does ([SpaceConfig.On]), fork only tries to take it. One lock for
// all tables, because the eviction queue looks into them: it is held for a
// fraction of a microsecond a fault, and never across a system call.
package pager
