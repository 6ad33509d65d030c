// SPDX-License-Identifier: Apache-2.0

// Package insn tells whether an instruction that has faulted was about to
// write. The kernel knows, and tells a signal handler, but not a tracer.
//
// Instructions that it does not know count as reads: who serves faults by it
// then serves a read, and the write faults anew.
package insn

import "github.com/faultline-go/faultline/mem"

// Regs are the registers that some instructions use without naming them. SI
// and DI are those of amd64's string instructions, 0 elsewhere.
type Regs struct{ SI, DI, SP uintptr }

// AMD64 reports whether the instruction that code begins with, which has
// faulted at address a, writes there.
func AMD64(code []byte, a mem.Addr, r Regs) bool {
	d := decoder{code: code, addr: a, regs: r}
	write := d.instruction()
	return write && !d.short
}

// ARM64 is AMD64 for that architecture.
func ARM64(code []byte) bool {
	if len(code) < 4 {
		return false
	}
	op := uint32(code[0]) | uint32(code[1])<<8 | uint32(code[2])<<16 | uint32(code[3])<<24
	const loads = 1 << 22
	switch {
	case op&0xffffffe0 == 0xd50b7420: // DC ZVA
		return true
	case op&0x3b200c00 == 0x38200000: // atomic memory operations
		return true
	case op&0x3f000000 == 0x08000000: // exclusive, ordered, compare and swap
		return op&loads == 0 || op&0x00a00000 == 0x00a00000
	case op&0x3b000000 == 0x18000000: // literal
		return false
	case op&0x3a000000 == 0x28000000: // pairs
		return op&loads == 0
	case op&0xbe000000 == 0x0c000000: // structures of vectors
		return op&loads == 0
	case op&0x3a000000 == 0x38000000: // one register: opc is in bits 22 and 23
		vector := op&(1<<26) != 0
		opc := op >> 22 & 3
		return opc == 0 || vector && opc == 2
	}
	return false
}
