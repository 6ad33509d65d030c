// SPDX-License-Identifier: Apache-2.0

// Package vkernel is the userfaultfd subsystem in software: address spaces
// with VMAs and page tables, the fault path, wait queues and the descriptor,
// without a system call. What speaks to the kernel's descriptor speaks to
// this one unchanged, on any system, in a test's bubble of time, and with
// every race held open by a hook.
//
// A [Kernel] is made with a [Profile]: [Linux618] is the subsystem of Linux
// 6.18, [Seed] the first version that was proposed. A [Process] has an address
// space and a table of descriptors; a [Thread] makes calls and touches memory,
// and sleeps while it waits. README.md has the semantics and the design.
//
// The trap: a Thread that touches registered memory sleeps until somebody
// answers, as a real one does. Give Load and Store a context.
//
// # Locks
//
// From outer to inner; what stands on one level is never held together:
//
//	space.mu                the mmap lock: read for faults and fills, write
//	                        for whatever changes a VMA
//		space.lineMu        lineages of VMAs
//		pageTable.grow      new directories
//		object.mu           pages, size and mappings of an object
//			slot.mu         2 MiB of a page table; two in order of address
//				chunk.mu    content of small pages
//				hugePage.mu content of a huge page
//			memory.mu       chunks of frames
//			hugePool.mu     huge frames in use
//			Kernel.pinMu
//		faultQueue.lock     faults of a descriptor; a spin lock
//		uffd.mu             events and readers of a descriptor
//			Process.mu      threads and table of descriptors
//	epoll.mu                what is watched and who waits for it
//	Kernel.mu               live processes
//	Thread.mu               who waits for a thread's state
//
// An access that needs no fault takes slot.mu and the content's lock alone, as
// hardware takes none. Nobody sleeps with a lock. uffd.changing is raised with
// space.mu held for writing, so that no fill is under way then, and lowered
// without.
package vkernel
