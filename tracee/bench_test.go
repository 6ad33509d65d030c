// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"os"
	"os/exec"
	"testing"
)

// Each pair shows a program alone and traced.

func BenchmarkTrueAlone(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTrueTraced(b *testing.B) {
	for b.Loop() {
		runTraced(b, "/bin/true")
	}
}

const shellLoop = "for i in $(seq 300); do /bin/true; done"

func BenchmarkShellAlone(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("/bin/sh", "-c", shellLoop).Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkShellTraced(b *testing.B) {
	for b.Loop() {
		runTraced(b, "/bin/sh", "-c", shellLoop)
	}
}

func runTraced(b *testing.B, argv ...string) {
	tr, err := Start(Options{Path: argv[0], Argv: argv, Env: os.Environ()})
	if err != nil {
		b.Fatal(err)
	}
	tr.Continue()
	<-tr.Done()
}

// BenchmarkDo is the way to the tracer thread and back while it waits.
func BenchmarkDo(b *testing.B) {
	tr, err := Start(Options{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}})
	if err != nil {
		b.Fatal(err)
	}
	tr.Continue()
	for b.Loop() {
		tr.Do(func() {})
	}
	tr.Kill()
	<-tr.Done()
}

// BenchmarkStopped stops and continues a thread that sleeps.
func BenchmarkStopped(b *testing.B) {
	tr, err := Start(Options{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}})
	if err != nil {
		b.Fatal(err)
	}
	tr.Continue()
	for b.Loop() {
		if err := tr.Stopped(b.Context(), tr.Root().Space(), func(*Thread) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	tr.Kill()
	<-tr.Done()
}
