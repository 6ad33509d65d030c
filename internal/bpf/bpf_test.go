// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf_test

import (
	"testing"

	"golang.org/x/sys/unix"

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

// TestLinkPanics: a jump that wraps around would allow what should be reported.
func TestLinkPanics(t *testing.T) {
	for name, build := range map[string]func(*bpf.Program){
		"no label": func(p *bpf.Program) { p.JumpIf(1, "nowhere") },
		"backward": func(p *bpf.Program) { p.Label("here"); p.JumpIf(1, "here") },
		"too far": func(p *bpf.Program) {
			p.JumpIf(1, "there")
			for range 256 {
				p.Ret(0)
			}
			p.Label("there")
		},
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
