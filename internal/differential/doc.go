// SPDX-License-Identifier: Apache-2.0

// Package differential runs the same operations on two kernels, one of which
// may be a model, and says where they differ.
//
// A [Script] is a list of operations: mapping, protecting, moving, dropping
// and touching memory from several threads, forking, and every request of a
// userfaultfd with good, borderline and bad arguments. [Random] makes one of
// a seed. An operation is a kind and a few small numbers, which [Trace]
// turns into something that makes sense at that point, or into nothing: so
// any part of a script is a script, and [Shrink] may cut at will.
//
// Nothing is left to luck. After every operation the threads are let come to
// rest, each either idle or asleep in something known, before anything is
// looked at. Where two threads have queued messages at once, whose order is
// anybody's, all messages are read and sorted.
package differential
