// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkPlant is one agent made and ended, with its session; by whether
// the tracer keeps to the CPU of the program.
func BenchmarkPlant(b *testing.B) {
	b.Run("anywhere", func(b *testing.B) { benchmarkPlant(b, false) })
	b.Run("same cpu", func(b *testing.B) { benchmarkPlant(b, true) })
}

func benchmarkPlant(b *testing.B, same bool) {
	v, _ := start(b, "pages")
	v.blocked()
	if same {
		pin(b, cpuOf(b, v.pid))
	}
	for b.Loop() {
		v.interrupt()
		s := v.open()
		a, err := Plant(s)
		if err != nil {
			b.Fatal(err)
		}
		closeSession(b, s)
		v.cont(0)
		b.StopTimer()
		a.Release()
		reapAgent(a)
		b.StartTimer()
	}
}

// BenchmarkSession is an interrupt, one injected call and the way back.
func BenchmarkSession(b *testing.B) {
	v, _ := start(b, "pages")
	v.blocked()
	for b.Loop() {
		v.interrupt()
		s := v.open()
		if _, err := s.Syscall(unix.SYS_GETPID); err != nil {
			b.Fatal(err)
		}
		closeSession(b, s)
		v.cont(0)
	}
}

// BenchmarkCall is one operation, by where the agent runs and whether it
// spins before it sleeps.
func BenchmarkCall(b *testing.B) {
	for _, spin := range []int{0, 50, 2000} {
		for _, other := range []bool{false, true} {
			for _, batch := range []int{1, 64} {
				b.Run(fmt.Sprintf("spin=%d/other=%v/ops=%d", spin, other, batch), func(b *testing.B) {
					if other && runtime.NumCPU() < 2 {
						b.Skip("needs two CPUs")
					}
					_, a, _ := planted(b)
					pin(b, 0)
					cpu := 0
					if other {
						cpu = 1
					}
					if err := a.SetCPU(cpu); err != nil {
						b.Fatal(err)
					}
					a.SetSpin(spin)
					ops := make([]Op, batch)
					for i := range ops {
						ops[i].NR = unix.SYS_GETPID
					}
					b.ReportAllocs()
					for b.Loop() {
						if err := a.Run(ops); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// cpuOf returns the CPU that a thread last ran on.
func cpuOf(b *testing.B, tid int) int {
	st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(st[bytes.LastIndexByte(st, ')')+1:]))
	cpu, err := strconv.Atoi(f[36]) // field 39; the first two are cut off
	if err != nil {
		b.Fatal(err)
	}
	return cpu
}

// pin binds the benchmark's locked thread to a CPU until it ends.
func pin(b *testing.B, cpu int) {
	var was, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		b.Fatal(err)
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.SchedSetaffinity(0, &was) })
}
