// SPDX-License-Identifier: Apache-2.0

package insn

import "github.com/faultline-go/faultline/mem"

// Writes is for the architecture of this binary.
func Writes(code []byte, a mem.Addr, r Regs) bool { return AMD64(code, a, r) }
