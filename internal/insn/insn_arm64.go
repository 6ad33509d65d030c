// SPDX-License-Identifier: Apache-2.0

package insn

import "github.com/faultline-go/faultline/mem"

// Writes is for the architecture of this binary.
func Writes(code []byte, _ mem.Addr, _ Regs) bool { return ARM64(code) }
