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
func OffArg(i int) uint32 { return offArgs + 8*uint32(i) }

// OffArgHigh is OffArg for the high half.
func OffArgHigh(i int) uint32 { return OffArg(i) + 4 }

// OffPCHigh is that of the high half of the address that the call is made from.
const OffPCHigh = 12

// Program is a filter under construction. It has one register. Jumps go
// forward, however far. The zero Program is empty.
type Program struct {
	code   []unix.SockFilter // conditional jumps without their distances
	labels map[label]int
	jumps  []jump // in the order of their places
	blocks int    // that have a label of their own
}

// label is a name, or for the end of a block its number.
type label struct {
	name  string
	block int
}

type jump struct {
	at  int
	to  label
	on  bool // whether it is made if the comparison is true
	far bool // it takes an instruction more
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
func (p *Program) RetIf(k, value uint32) { p.If(k, func() { p.Ret(value) }) }

// If adds what body adds for where the register equals k. What comes after it
// must not rely on the register where body may have changed it.
func (p *Program) If(k uint32, body func()) { p.block(unix.BPF_JEQ, k, false, body) }

// Unless is If for where the register does not equal k.
func (p *Program) Unless(k uint32, body func()) { p.block(unix.BPF_JEQ, k, true, body) }

// IfAtLeast is If for where the register is k or more.
func (p *Program) IfAtLeast(k uint32, body func()) { p.block(unix.BPF_JGE, k, false, body) }

// IfAtMost is If for where the register is k or less.
func (p *Program) IfAtMost(k uint32, body func()) { p.block(unix.BPF_JGT, k, true, body) }

// IfMore is If for where the register is more than k.
func (p *Program) IfMore(k uint32, body func()) { p.block(unix.BPF_JGT, k, false, body) }

// block adds body, which is jumped over if the comparison is as skip says.
func (p *Program) block(op uint16, k uint32, skip bool, body func()) {
	end := p.end()
	p.jump(op, k, end, skip)
	body()
	p.place(end)
}

// IfCall adds what body adds for the system calls nrs. It loads the number.
func (p *Program) IfCall(nrs []uintptr, body func()) {
	if len(nrs) == 0 {
		return
	}
	in, end := p.end(), p.end()
	p.Load(OffNR)
	for i, nr := range nrs {
		if i == len(nrs)-1 {
			p.jump(unix.BPF_JEQ, uint32(nr), end, false)
		} else {
			p.jump(unix.BPF_JEQ, uint32(nr), in, true)
		}
	}
	p.place(in)
	body()
	p.place(end)
}

// JumpIf jumps if the register equals k.
func (p *Program) JumpIf(k uint32, to string) { p.jump(unix.BPF_JEQ, k, label{name: to}, true) }

// JumpUnless jumps if the register does not equal k.
func (p *Program) JumpUnless(k uint32, to string) { p.jump(unix.BPF_JEQ, k, label{name: to}, false) }

// JumpAtLeast jumps if the register is k or more.
func (p *Program) JumpAtLeast(k uint32, to string) { p.jump(unix.BPF_JGE, k, label{name: to}, true) }

func (p *Program) jump(op uint16, k uint32, to label, on bool) {
	p.jumps = append(p.jumps, jump{at: len(p.code), to: to, on: on})
	p.emit(unix.BPF_JMP|op|unix.BPF_K, k)
}

// Label names the place of what comes next.
func (p *Program) Label(name string) { p.place(label{name: name}) }

func (p *Program) place(l label) {
	if p.labels == nil {
		p.labels = make(map[label]int)
	}
	p.labels[l] = len(p.code)
}

// end returns a label that nobody else has.
func (p *Program) end() label {
	p.blocks++
	return label{block: p.blocks}
}

// reach is how many instructions a conditional jump can skip.
const reach = 255

// Link fills in the distances of the jumps and returns the filter. The program
// is used up. It panics if a label is missing, or lies before its jump.
func (p *Program) Link() []unix.SockFilter {
	// A jump that is made far moves all that comes after it, and that may make
	// others far.
	for changed := true; changed; {
		changed = false
		placed := p.placed()
		for i := range p.jumps {
			j := &p.jumps[i]
			if dist := p.distance(placed, j); dist > reach && !j.far {
				j.far, changed = true, true
			}
		}
	}
	return p.assemble(p.placed())
}

// placed returns the place that each instruction has in the filter, and what
// comes after the last.
func (p *Program) placed() []int {
	placed := make([]int, len(p.code)+1)
	far, next := 0, 0
	for i := range placed {
		placed[i] = i + far
		if next < len(p.jumps) && p.jumps[next].at == i {
			if p.jumps[next].far {
				far++
			}
			next++
		}
	}
	return placed
}

// distance returns how many instructions a jump skips, or its second one.
func (p *Program) distance(placed []int, j *jump) int {
	at, ok := p.labels[j.to]
	if !ok || at <= j.at {
		panic(fmt.Sprintf("bpf: instruction %d cannot jump to %+v at %d", j.at, j.to, at))
	}
	from := placed[j.at] + 1
	if j.far {
		from++
	}
	return placed[at] - from
}

func (p *Program) assemble(placed []int) []unix.SockFilter {
	out := make([]unix.SockFilter, 0, placed[len(p.code)])
	next := 0
	for i, in := range p.code {
		if next == len(p.jumps) || p.jumps[next].at != i {
			out = append(out, in)
			continue
		}
		j := &p.jumps[next]
		next++
		dist := p.distance(placed, j)
		switch {
		case j.far && j.on:
			in.Jf = 1
		case j.far:
			in.Jt = 1
		case j.on:
			in.Jt = uint8(dist)
		default:
			in.Jf = uint8(dist)
		}
		out = append(out, in)
		if j.far {
			// This one reaches everywhere, and has no condition.
			out = append(out, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(dist)})
		}
	}
	return out
}
