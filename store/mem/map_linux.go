// SPDX-License-Identifier: Apache-2.0

package mem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/faultline-go/faultline/store"
)

// madvise advice values of the Linux ABI that package syscall lacks.
const (
	madvDontDump      = 16
	madvNoHugePage    = 15
	madvPopulateWrite = 23 // since Linux 5.14
)

// mapChunk maps n bytes of fresh memory, without reserving swap for them: how
// much of it is used is the allocator's affair.
func mapChunk(n int) ([]byte, error) {
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("%w: mmap of %d bytes: %w", store.ErrFull, n, err)
	}
	// With huge pages a freed slab would return to the kernel only with 31
	// others, and be taken back by khugepaged. The pages of other programs do
	// not belong in a core dump of ours. Neither advice is needed.
	_ = syscall.Madvise(b, madvNoHugePage)
	_ = syscall.Madvise(b, madvDontDump)
	return b, nil
}

func unmapChunk(b []byte) error { return syscall.Munmap(b) }

// populate takes the memory of b from the kernel in one call, which costs less
// than a fault for each page. It fails when there is none: better here than as
// a fault in the middle of a copy.
func populate(b []byte) error {
	err := syscall.Madvise(b, madvPopulateWrite)
	switch {
	case err == nil, errors.Is(err, syscall.EINVAL): // EINVAL before Linux 5.14
		return nil
	case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
		return nil // the rest comes by faults
	}
	return fmt.Errorf("%w: populate %d bytes of memory: %w", store.ErrFull, len(b), err)
}

// release gives the memory of b back; it reads as zeros afterwards. A refusal
// costs memory, not correctness.
func release(b []byte) { _ = syscall.Madvise(b, syscall.MADV_DONTNEED) }
