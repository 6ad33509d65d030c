// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf_test

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/faultline-go/faultline/internal/bpf"
	"github.com/faultline-go/faultline/internal/bpf/bpftest"
)

const arch = unix.AUDIT_ARCH_X86_64

func TestProgram(t *testing.T) {
	var p bpf.Program
	p.Load(bpf.OffArch)
	p.JumpUnless(arch, "foreign")
	p.Load(bpf.OffNR)
	p.JumpAtLeast(100, "high")
	p.JumpIf(7, "seven")
	p.Ret(1)
	p.Label("seven")
	p.Load(bpf.OffArg(2))
	p.And(0xf0)
	p.RetIf(0x50, 2)
	p.RetIf(0x60, 3)
	p.Ret(4)
	p.Label("high")
	p.Ret(5)
	p.Label("foreign")
	p.Ret(6)
	prog := p.Link()
	for _, tc := range []struct {
		data     []byte
		want     uint32
		constant bool
	}{
		{bpftest.Data(arch, 6), 1, true},
		{bpftest.Data(arch, 7, 0x50, 0x50, 0x15f), 2, false},
		{bpftest.Data(arch, 7, 0x50, 0x50, 0xffff_0000_0000_0060), 3, false},
		{bpftest.Data(arch, 7, 0x50, 0x50, 0x70), 4, false},
		{bpftest.Data(arch, 100), 5, true},
		{bpftest.Data(arch+1, 7), 6, true},
	} {
		got, constant := bpftest.Run(t, prog, tc.data)
		if got != tc.want || constant != tc.constant {
			t.Errorf("%x: %d (constant: %v), want %d (%v)", tc.data, got, constant, tc.want, tc.constant)
		}
	}
}

// TestFar: a conditional jump reaches 255 instructions, ours any number.
func TestFar(t *testing.T) {
	for _, n := range []int{0, 1, 253, 254, 255, 256, 257, 1000} {
		var p bpf.Program
		fill := func() {
			for range n {
				p.And(0xffff_ffff)
			}
		}
		p.Load(bpf.OffArg(0))
		p.JumpIf(1, "one")
		p.JumpUnless(2, "other")
		fill()
		p.Ret(20)
		p.Label("one")
		fill()
		p.Ret(10)
		p.Label("other")
		fill()
		p.Ret(30)
		prog := p.Link()
		for arg, want := range map[uint64]uint32{1: 10, 2: 20, 3: 30} {
			if got, _ := bpftest.Run(t, prog, bpftest.Data(arch, 0, arg)); got != want {
				t.Errorf("over %d instructions, %d: %d, want %d", n, arg, got, want)
			}
		}
	}
}

// TestBlocks: blocks in blocks, near and far, do what the same conditions do in
// Go.
func TestBlocks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var p bpf.Program
		nr := uint32(rapid.IntRange(0, 5).Draw(rt, "call"))
		arg := rapid.SampledFrom([]uint64{0, 1, 2, 3, 1 << 32, 1<<32 | 2}).Draw(rt, "argument")
		want, decided := uint32(0), false
		last := uint32(1)
		var block func(depth int, live bool)
		block = func(depth int, live bool) {
			for range rapid.IntRange(0, 300).Draw(rt, "filler") {
				p.And(0xffff_ffff)
			}
			for range rapid.IntRange(0, 3).Draw(rt, "blocks") {
				if depth == 0 {
					break
				}
				k := uint32(rapid.IntRange(0, 3).Draw(rt, "k"))
				inner := func(cond bool) func() { return func() { block(depth-1, live && cond) } }
				at, value := bpf.OffArg(0), uint32(arg)
				if rapid.Bool().Draw(rt, "high") {
					at, value = bpf.OffArgHigh(0), uint32(arg>>32)
				}
				p.Load(at)
				switch rapid.IntRange(0, 5).Draw(rt, "kind") {
				case 0:
					p.If(k, inner(value == k))
				case 1:
					p.Unless(k, inner(value != k))
				case 2:
					p.IfAtLeast(k, inner(value >= k))
				case 3:
					p.IfAtMost(k, inner(value <= k))
				case 4:
					p.IfMore(k, inner(value > k))
				case 5:
					calls := rapid.SliceOfN(rapid.UintptrRange(0, 5), 0, 4).Draw(rt, "calls")
					p.IfCall(calls, inner(slices.Contains(calls, uintptr(nr))))
				}
			}
			if depth > 0 && rapid.Bool().Draw(rt, "goes on") {
				return
			}
			p.Ret(last)
			if live && !decided {
				want, decided = last, true
			}
			last++
		}
		block(3, true)
		p.Ret(0)
		prog := p.Link()
		if got, _ := bpftest.Run(t, prog, bpftest.Data(arch, nr, arg)); got != want {
			rt.Errorf("call %d of %#x: %d, want %d", nr, arg, got, want)
		}
	})
}

// TestLinkPanics: a jump that wraps around would allow what should be reported.
func TestLinkPanics(t *testing.T) {
	for name, build := range map[string]func(*bpf.Program){
		"no label": func(p *bpf.Program) { p.JumpIf(1, "nowhere") },
		"backward": func(p *bpf.Program) { p.Label("here"); p.JumpIf(1, "here") },
	} {
		var p bpf.Program
		build(&p)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: linked", name)
				}
			}()
			p.Link()
		}()
	}
}
