// SPDX-License-Identifier: Apache-2.0

package file

import (
	"sync"

	"github.com/faultline-go/faultline/store/internal/disk"
)

// faulty is a disk that fails as it is told to. Each hook may be nil.
type faulty struct {
	disk.File

	mu      sync.Mutex
	pwrite  func(b []byte, off int64) (int, error) // mu; nil error with -1 means go on
	pread   func(off int64) error                  // mu
	sync    func() error                           // mu
	reserve func() error                           // mu
	syncs   int                                    // mu
	writes  int                                    // mu
	noTry   bool                                   // mu
}

func (f *faulty) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *faulty) Pwrite(b []byte, off int64) (int, error) {
	f.mu.Lock()
	hook := f.pwrite
	f.writes++
	f.mu.Unlock()
	if hook != nil {
		if n, err := hook(b, off); n >= 0 || err != nil {
			if n > 0 {
				if n, err := f.File.Pwrite(b[:n], off); err != nil {
					return n, err
				}
			}
			return max(n, 0), err
		}
	}
	return f.File.Pwrite(b, off)
}

func (f *faulty) Pread(b []byte, off int64) (int, error) {
	f.mu.Lock()
	hook := f.pread
	f.mu.Unlock()
	if hook != nil {
		if err := hook(off); err != nil {
			return 0, err
		}
	}
	return f.File.Pread(b, off)
}

func (f *faulty) TryPread(s *disk.Scratch, n int, off int64) ([]byte, bool, error) {
	f.mu.Lock()
	no := f.noTry
	f.mu.Unlock()
	if no {
		return nil, false, nil
	}
	return f.File.TryPread(s, n, off)
}

func (f *faulty) Datasync() error {
	f.mu.Lock()
	hook := f.sync
	f.syncs++
	f.mu.Unlock()
	if hook != nil {
		if err := hook(); err != nil {
			return err
		}
	}
	return f.File.Datasync()
}

func (f *faulty) Reserve(off, n int64) error {
	f.mu.Lock()
	hook := f.reserve
	f.mu.Unlock()
	if hook != nil {
		if err := hook(); err != nil {
			return err
		}
	}
	return f.File.Reserve(off, n)
}
