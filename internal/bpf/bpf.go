// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package bpf writes seccomp filters: programs of classic BPF over struct
// seccomp_data (seccomp(2)).
//
// The kernel (since Linux 5.11) finds out at installation for which calls a
// filter looks at nothing but architecture and number and allows the call. For
// these it does not run the filter at all, so it is worth testing both first.
package bpf

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	OffNR   = 0
	OffArch = 4
	offArgs = 16
)

// OffArg returns the offset of the low half of argument i, counted from 0. The
// arguments are little-endian on the architectures that we know.
func OffArg(i uint32) uint32 { return offArgs + 8*i }

// Program is a filter under construction. It has one register. Jumps go
// forward to labels, over 255 instructions at most. The zero Program is empty.
type Program struct {
	code   []unix.SockFilter
	labels map[string]int
	jumps  []jump
}

type jump struct {
	at     int
	to     string
	onTrue bool
}

func (p *Program) emit(code uint16, k uint32) {
	p.code = append(p.code, unix.SockFilter{Code: code, K: k})
}

// Load loads the 32-bit word at off of struct seccomp_data.
func (p *Program) Load(off uint32) { p.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }

// And keeps the bits of mask.
func (p *Program) And(mask uint32) { p.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask) }

// Ret ends the filter with a SECCOMP_RET_ value.
func (p *Program) Ret(value uint32) { p.emit(unix.BPF_RET|unix.BPF_K, value) }

// RetIf is Ret if the register equals k, and goes on otherwise.
func (p *Program) RetIf(k, value uint32) {
	p.code = append(p.code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: k})
	p.Ret(value)
}

// JumpIf jumps if the register equals k.
func (p *Program) JumpIf(k uint32, to string) { p.jump(unix.BPF_JEQ, k, to, true) }

// JumpUnless jumps if the register does not equal k.
func (p *Program) JumpUnless(k uint32, to string) { p.jump(unix.BPF_JEQ, k, to, false) }

// JumpAtLeast jumps if the register is k or more.
func (p *Program) JumpAtLeast(k uint32, to string) { p.jump(unix.BPF_JGE, k, to, true) }

func (p *Program) jump(op uint16, k uint32, to string, onTrue bool) {
	p.jumps = append(p.jumps, jump{len(p.code), to, onTrue})
	p.emit(unix.BPF_JMP|op|unix.BPF_K, k)
}

// Label names the place of what comes next.
func (p *Program) Label(name string) {
	if p.labels == nil {
		p.labels = make(map[string]int)
	}
	p.labels[name] = len(p.code)
}

// Link fills in the distances of the jumps and returns the filter. The program
// is used up. It panics if a label is missing, or too far from its jump.
func (p *Program) Link() []unix.SockFilter {
	for _, j := range p.jumps {
		at, ok := p.labels[j.to]
		dist := at - j.at - 1
		if !ok || dist < 0 || dist > 255 {
			panic(fmt.Sprintf("bpf: instruction %d cannot jump to %q, %d further on", j.at, j.to, dist))
		}
		if j.onTrue {
			p.code[j.at].Jt = uint8(dist)
		} else {
			p.code[j.at].Jf = uint8(dist)
		}
	}
	return p.code
}
