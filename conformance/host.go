// SPDX-License-Identifier: Apache-2.0

package conformance

// Host runs programs and gives them the system call. It knows what they are
// kept waiting for, which the kernel below it does not.
type Host interface {
	// Name is how the report calls it.
	Name() string
	// Start runs a program, and what descends from it, in the place of the one
	// before, which has ended if there was one. Its environment is empty, and
	// files are its descriptors.
	Start(path string, argv []string, files []uintptr) error
	// State is what a thread is at that the host holds up. A thread that it
	// does not is what the kernel says.
	State(tid int) (s State, held bool)
	// Excuse says why a case, by its name, a slash, and the kind of memory if it
	// has one, cannot pass; it is empty for all that have to.
	Excuse(title string) string
	// Close ends all that was started.
	Close() error
}
