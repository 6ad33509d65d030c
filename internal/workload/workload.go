// SPDX-License-Identifier: Apache-2.0

// Package workload builds the programs that tests and benchmarks run under
// faultline: programs that use memory in every way that real ones do and
// verify all of it themselves.
//
// Each prints the same bytes to stdout for the same arguments, so that a run
// under faultline can be compared with one without, and exits with status 0
// only where everything it checked was right. Their own comments, in csrc and
// cmd, say what they take and do:
//
//   - touch: fills, reads, rewrites and verifies memory in several orders
//   - mapper: moves, shrinks, frees, protects and replaces its mappings
//   - procs: makes processes and threads in every way, with signals
//   - pins: lets the kernel hold on to pages: direct I/O, pipes, io_uring
//   - confined: takes rights from itself first: user, root, namespace, system calls
//   - remote: has processes read and write the memory of each other
//   - newborn: has a forked child use its memory in one long system call
//   - contend: has the kernel lock the pages that it uses
//   - robust: ends threads and processes that hold robust futexes
//   - selfcheck: verifies itself for ever, to be killed
//   - torn: serves its own memory by userfaultfd while it is dropped and touched
//   - uffdwalk: uses each request, mode and event of userfaultfd once, and prints
//     what comes of it
//   - malform: makes malformed calls of userfaultfd at random, and prints their results
//   - broken: breaks a page on purpose, to prove that the others would notice
//   - gomem: a Go program with goroutines, garbage and signals
package workload

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

//go:embed csrc
var sources embed.FS

// ErrNoCompiler is matched by the error of [Compile] where the machine has
// neither cc nor gcc.
var ErrNoCompiler = errors.New("no C compiler: install gcc or clang")

// goPackage is where the Go program lives; go build takes it from any
// directory of the module.
const goPackage = "github.com/faultline-go/faultline/internal/workload/cmd/gomem"

// flags are what the C programs are compiled with. Optimised, because the
// benchmarks should measure faults and not the making of test data.
var flags = []string{"-O2", "-Wall", "-Wextra", "-pthread"}

// Build returns the path of the named program, built if need be. It skips the
// test where there is no C compiler and fails it where the program does not
// compile. C programs are kept in the user's cache directory from one run to
// the next; without one, and for gomem, they live as long as the test.
func Build(tb testing.TB, name string) string {
	tb.Helper()
	dir := tb.TempDir()
	if name != "gomem" {
		if cache, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(cache, "faultline-workload")
			if os.MkdirAll(cache, 0o700) == nil {
				dir = cache
			}
		}
	}
	path, err := Compile(tb.Context(), dir, name)
	testutil.Need(tb, !errors.Is(err, ErrNoCompiler), ErrNoCompiler.Error())
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Compile builds the named program below dir and returns its path. A program
// that dir already holds, made of the same sources by the same compiler, is
// not built again. Several processes may share dir: a program appears in it by
// a rename. It returns [ErrNoCompiler] where a C compiler is needed and
// missing, and the compiler's own output where it refuses.
func Compile(ctx context.Context, dir, name string) (path string, err error) {
	if name == "gomem" {
		path = filepath.Join(dir, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-o", path, goPackage)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
		return path, nil
	}
	cc, err := compiler()
	if err != nil {
		return "", err
	}
	sum, err := fingerprint(ctx, cc, name)
	if err != nil {
		return "", err
	}
	// The program has its plain name, which it prints in its messages.
	path = filepath.Join(dir, sum, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.CopyFS(work, sources); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	made := filepath.Join(work, name)
	args := append(flags[:len(flags):len(flags)], "-o", made, filepath.Join(work, "csrc", name+".c"))
	if out, err := exec.CommandContext(ctx, cc, args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile %s: %w\n%s", name, err, out)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if err := os.Rename(made, path); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	return path, nil
}

// compiler finds the C compiler: CC, else cc, else gcc.
func compiler() (string, error) {
	for _, name := range []string{os.Getenv("CC"), "cc", "gcc"} {
		if name == "" {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoCompiler
}

// fingerprint is a short name for what would be compiled and by what.
func fingerprint(ctx context.Context, cc, name string) (string, error) {
	if _, err := sources.ReadFile("csrc/" + name + ".c"); err != nil {
		return "", fmt.Errorf("no workload program %q: %w", name, err)
	}
	version, err := exec.CommandContext(ctx, cc, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", cc, err)
	}
	h := sha256.New()
	fmt.Fprintln(h, runtime.GOARCH, flags)
	_, _ = h.Write(version) // a hash's Write never fails
	entries, err := sources.ReadDir("csrc")
	if err != nil {
		return "", fmt.Errorf("read embedded sources: %w", err)
	}
	for _, e := range entries {
		text, err := sources.ReadFile("csrc/" + e.Name())
		if err != nil {
			return "", fmt.Errorf("read embedded sources: %w", err)
		}
		fmt.Fprintln(h, e.Name(), len(text))
		_, _ = h.Write(text)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
