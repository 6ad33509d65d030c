// SPDX-License-Identifier: Apache-2.0

package vkernel_test

import (
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/vkernel"
)

// The pager serves a descriptor of the software subsystem like the kernel's.
var _ pager.Descriptor = (*vkernel.Descriptor)(nil)
