// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

var update = flag.Bool("update", false, "write blob_GOARCH.go from testdata/asm/puppet_GOARCH.s")

// toolPrefix finds the binutils for arch.
func toolPrefix(arch string) (string, bool) {
	prefix := map[string]string{"amd64": "x86_64-linux-gnu-", "arm64": "aarch64-linux-gnu-"}[arch]
	if _, err := exec.LookPath(prefix + "as"); err == nil {
		return prefix, true
	}
	_, err := exec.LookPath("as")
	return "", err == nil && arch == runtime.GOARCH
}

// blobOf parses the committed bytes of arch out of their Go source, so that
// each machine checks both architectures.
func blobOf(t *testing.T, arch string) []byte {
	src, err := os.ReadFile("blob_" + arch + ".go")
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, m := range regexp.MustCompile(`0x([0-9a-f]{2}),`).FindAllSubmatch(src, -1) {
		v, err := strconv.ParseUint(string(m[1]), 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, byte(v))
	}
	return b
}

// TestBlob assembles the puppet's source and compares it with the bytes that
// are run.
func TestBlob(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			prefix, ok := toolPrefix(arch)
			testutil.Need(t, ok, "no assembler for "+arch+" (apt install binutils-aarch64-linux-gnu)")
			dir := t.TempDir()
			obj, bin := filepath.Join(dir, "p.o"), filepath.Join(dir, "p.bin")
			tool(t, prefix+"as", "-o", obj, "testdata/asm/puppet_"+arch+".s")
			tool(t, prefix+"objcopy", "-O", "binary", "-j", ".text", obj, bin)
			want, err := os.ReadFile(bin)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				writeBlob(t, arch, want)
			}
			if got := blobOf(t, arch); !bytes.Equal(got, want) {
				t.Errorf("blob_%s.go is not what its source assembles to; run go test -run TestBlob -update", arch)
			}
			// Position independent: nothing left for a linker to fill in.
			if rel := tool(t, prefix+"objdump", "-r", obj); strings.Contains(rel, "RELOCATION RECORDS") {
				t.Errorf("the blob has relocations:\n%s", rel)
			}
		})
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func writeBlob(t *testing.T, arch string, b []byte) {
	machine := map[string]string{"amd64": "62 // EM_X86_64", "arm64": "183 // EM_AARCH64"}[arch]
	var w strings.Builder
	fmt.Fprintf(&w, "// SPDX-License-Identifier: Apache-2.0\n\n// Code generated from testdata/asm/puppet_%s.s by go test -run TestBlob -update. DO NOT EDIT.\n\n", arch)
	fmt.Fprintf(&w, "//go:build linux\n\npackage puppet\n\nconst elfMachine = %s\n\n// blob is the puppet's machine code.\nvar blob = [...]byte{", machine)
	for i, v := range b {
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
