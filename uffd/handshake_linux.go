// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// noRange stands in errors of operations that have no range.
var noRange mem.Range

// API is UFFDIO_API: it enables features on f, once, before anything else can
// be done with f. The answer holds all features that the kernel has, and is
// zero if the call fails. After a failure f can still be used for another
// try. Most callers want Handshake.
func (f *FD) API(version uint64, features uapi.Features) (uapi.API, syscall.Errno) {
	arg := uapi.API{API: version, Features: features}
	errno := ioctl(f, uapi.UFFDIO_API, &arg)
	if errno != 0 {
		return uapi.API{}, errno
	}
	return arg, 0
}

// Handshake enables features on f, which has had no handshake yet. If the
// kernel lacks some, the error has a *[FeatureError] for each of them, and f
// can be used for another handshake with less.
func (f *FD) Handshake(features uapi.Features) error {
	_, errno := f.API(uapi.UFFD_API, features)
	switch errno {
	case 0:
		return nil
	case syscall.EPERM:
		return fmt.Errorf("UFFDIO_API with EVENT_FORK: %w (run as root or grant CAP_SYS_PTRACE)", errno)
	case syscall.EINVAL:
		answer, err := Probe()
		if err != nil {
			return fmt.Errorf("UFFDIO_API with %v: %w, and what the kernel has cannot be found out: %w", features, errno, err)
		}
		if err := Missing(answer.Features, features); err != nil {
			return fmt.Errorf("UFFDIO_API: %w", err)
		}
		return fmt.Errorf("UFFDIO_API with %v: %w (a descriptor has one handshake, and had it)", features, errno)
	}
	return fmt.Errorf("UFFDIO_API: %w", errno)
}

// Missing returns nil if have holds all of want, and otherwise an error with
// a *[FeatureError] for each feature that it lacks. It matches
// [ErrNotSupported].
func Missing(have, want uapi.Features) error {
	var missing features
	lack := want &^ have
	for _, row := range uapi.FeatureTable() {
		if lack.Has(row.Bit) {
			missing = append(missing, &FeatureError{Name: row.Name, Since: row.Since})
			lack &^= row.Bit
		}
	}
	if lack != 0 {
		missing = append(missing, &FeatureError{Name: lack.String()})
	}
	if missing == nil {
		return nil
	}
	return missing
}

// features is one or more *FeatureError on one line.
type features []error

func (e features) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "; ")
}

func (e features) Unwrap() []error { return e }

var probed struct {
	mu     sync.Mutex
	answer uapi.API // protected by mu; zero until a probe succeeds
}

// Probe returns what the kernel supports. It asks on a descriptor of its own,
// because asking uses up the only handshake of a descriptor. The answer is
// remembered; a failure, which may pass, is not.
func Probe() (uapi.API, error) {
	probed.mu.Lock()
	defer probed.mu.Unlock()
	if probed.answer.API != 0 {
		return probed.answer, nil
	}
	f, err := Open(Options{})
	if errors.Is(err, syscall.EPERM) {
		// Features do not depend on the kind of descriptor, and this kind
		// everybody may have.
		if user, uerr := Open(Options{UserModeOnly: true}); uerr == nil {
			f, err = user, nil
		}
	}
	if err != nil {
		return uapi.API{}, fmt.Errorf("probe for userfaultfd features: %w", err)
	}
	defer f.Close()
	answer, errno := f.API(uapi.UFFD_API, 0)
	if errno != 0 {
		return uapi.API{}, fmt.Errorf("probe for userfaultfd features: UFFDIO_API: %w", errno)
	}
	probed.answer = answer
	return answer, nil
}
