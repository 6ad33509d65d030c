// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !(amd64 || arm64)

package conformance

import (
	"fmt"
	"runtime"
)

// Hosted returns what a host shows of the running kernel, of which there is
// none here.
func Hosted(Host) (Backend, error) { return Kernel() }

func zeroPage() bool { return true }

// Kernel returns the running kernel, of which there is none here.
func Kernel() (Backend, error) {
	return nil, fmt.Errorf("the kernel of %s/%s has no userfaultfd that faultline knows", runtime.GOOS, runtime.GOARCH)
}
