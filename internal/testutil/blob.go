// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Blob is machine code that is committed as bytes in blob_GOARCH.go, and is
// written in assembler.
type Blob struct {
	Package string
	What    string                   // "the agent's machine code"
	Source  string                   // path of the assembler file, with %s for GOARCH
	Head    func(arch string) string // declarations before the bytes; optional
}

// Check assembles the source for arch and holds that the committed bytes are
// what comes out, and that they can run anywhere. With update it writes them
// first. It returns the disassembly, and skips the test without an assembler.
func (b Blob) Check(t *testing.T, arch string, update bool) (dis string) {
	t.Helper()
	prefix, ok := toolPrefix(arch)
	Need(t, ok, "no assembler for "+arch+" (apt install binutils-aarch64-linux-gnu)")
	dir := t.TempDir()
	obj, bin := filepath.Join(dir, "blob.o"), filepath.Join(dir, "blob.bin")
	run(t, prefix+"as", "-o", obj, b.source(arch))
	run(t, prefix+"objcopy", "-O", "binary", "-j", ".text", obj, bin)
	want, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if update {
		b.write(t, arch, want)
	}
	if got := committed(t, arch); !bytes.Equal(got, want) {
		t.Errorf("blob_%s.go is not what %s assembles to; run go test -run TestBlob -update", arch, b.source(arch))
	}
	// Position independent: nothing left for a linker to fill in.
	if rel := run(t, prefix+"objdump", "-r", obj); strings.Contains(rel, "RELOCATION RECORDS") {
		t.Errorf("the blob has relocations:\n%s", rel)
	}
	return run(t, prefix+"objdump", "-d", obj)
}

func (b Blob) source(arch string) string { return fmt.Sprintf(b.Source, arch) }

// toolPrefix finds the binutils for arch.
func toolPrefix(arch string) (string, bool) {
	prefix := map[string]string{"amd64": "x86_64-linux-gnu-", "arm64": "aarch64-linux-gnu-"}[arch]
	if _, err := exec.LookPath(prefix + "as"); err == nil {
		return prefix, true
	}
	_, err := exec.LookPath("as")
	return "", err == nil && arch == runtime.GOARCH
}

// committed parses the bytes of arch out of their Go source, so that each
// machine can check both architectures.
func committed(t *testing.T, arch string) (b []byte) {
	t.Helper()
	src, err := os.ReadFile("blob_" + arch + ".go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`0x([0-9a-f]{2}),`).FindAllSubmatch(src, -1) {
		v, err := strconv.ParseUint(string(m[1]), 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, byte(v))
	}
	return b
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (b Blob) write(t *testing.T, arch string, code []byte) {
	t.Helper()
	var w strings.Builder
	fmt.Fprintf(&w, "// SPDX-License-Identifier: Apache-2.0\n\n// Code generated from %s by go test -run TestBlob -update. DO NOT EDIT.\n\n", b.source(arch))
	fmt.Fprintf(&w, "//go:build linux\n\npackage %s\n\n", b.Package)
	if b.Head != nil {
		w.WriteString(b.Head(arch))
	}
	fmt.Fprintf(&w, "// blob is %s.\nvar blob = [...]byte{", b.What)
	for i, v := range code {
		if i%12 == 0 {
			w.WriteString("\n\t")
		} else {
			w.WriteByte(' ')
		}
		fmt.Fprintf(&w, "0x%02x,", v)
	}
	w.WriteString("\n}\n")
	if err := os.WriteFile("blob_"+arch+".go", []byte(w.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
