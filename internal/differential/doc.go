// SPDX-License-Identifier: Apache-2.0

// Package differential runs the same operations on two kernels, one of which
// may be a model, and says where they differ.
//
// A [Script] is a list of operations: mapping, protecting, moving, dropping
// and touching memory from several threads, memory that grows down, files that
// change their size, forking, scans of the pagemap, and every request of a
// userfaultfd and way of reading it; calls and requests have good, borderline
// and bad arguments. [Random] makes one of a seed. An operation is a kind and a few small numbers, which [Trace]
// turns into something that makes sense at that point, or into nothing: so
// any part of a script is a script, and [Shrink] may cut at will.
//
// Nothing is left to luck. After every operation the threads are let come to
// rest, each either idle or asleep in something known, before anything is
// looked at. Where two threads have queued messages at once, whose order is
// anybody's, all messages are read and sorted.
//
// What is compared is what calls and accesses come to, all messages, and after
// every operation the mappings of the process and of its children, with all flags
// that smaps has, and the pagemap of every page: there or marked, protected, of a
// file, mapped once. At the end it is the content. Poison is a mark in the pagemap,
// but among huge pages, and a signal at the end.
//
// # What is left out
//
// Of the layout, the frames, and whether a page was written since somebody asked
// (soft-dirty, the flag sd), which not every kernel keeps account of. Of a read
// that ends early, what is behind its last whole message.
//
// Linux 6.18 has answers that depend on chance or never come. Scripts do not
// ask for them, on either side:
//
//   - While MADV_DONTNEED sleeps for the REMOVE event of one mapping, the pages
//     of the mappings before it are gone, but processors may still see them:
//     they are told at the end of the call. An access meanwhile returns the old
//     content or faults, as the processor it runs on has seen the page or not;
//     package vkernel always faults. This script maps the first page anew in
//     one of three runs:
//
//     memory anon private-shmem anon
//     open 0 32 0 0 18
//     load 21 0 0 30 11 0 23
//     register 0 0 36 50
//     madvise 0 0 0 46
//     load 26 15 32 17 0 43
//
//   - Where a mode without write protection replaces one with it, the
//     protection of huge pages stays, and a write faults for ever, in the
//     kernel, until the thread is killed. In package vkernel the write
//     succeeds:
//
//     memory private-hugetlb anon anon
//     open
//     register 0 0 0 0 28
//     protect
//     register 0 0 0 0 46
//     cas
//
//   - Where a thread that reads and one that writes want the same page of a
//     file, and both are woken without it, the first decides what is mapped: a
//     read brings the neighbours along, a write does not. Nothing wakes such
//     two but what gives them the page.
//
//   - If what they are given is the page of zeros, or one of a file that is
//     mapped private, the writer makes a copy, and for a moment there is no page.
//     The reader may ask for it again just then, and sleeps until somebody wakes
//     it: a page that is there is asked for. Neither ZEROPAGE nor CONTINUE is
//     used then. In package vkernel a page is there or not. Seed 100001453 found
//     it, in one of a hundred runs:
//
//     memory private-shmem anon anon
//     open
//     register
//     write
//     store 1
//     zeropage
//
//   - Whether memory can become so long that it does not fit the machine is that
//     machine's business: an mremap whose lengths are more than its memory, and
//     less than all addresses, is ENOMEM in one kernel and succeeds in another.
//     Nor may a range that a call takes apart reach what the threads live on.
//
//   - When part of a mapping of private huge pages moves, its reservation is
//     lost: the pool keeps a page that nobody can have until the next boot. Such
//     memory is mapped with MAP_NORESERVE, which has no reservations. The script
//     that lost one is "mremap 0 1" on private-hugetlb.
package differential
