// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

const manualPage = "/usr/share/man/man2/userfaultfd.2.gz"

var (
	manualSource = regexp.MustCompile(`(?s)\n\.\\" SRC BEGIN[^\n]*\n\.EX\n(.*?)\n\.EE\n`)
	// roff undoes what a manual page writes in another way than C does.
	roff = strings.NewReplacer(`\e`, `\`, `\[rs]`, `\`, `\-`, `-`, `\[aq]`, `'`, `\(aq`, `'`, `\[ti]`, `~`, `\(ti`, `~`,
		`\[ha]`, `^`, `\(ha`, `^`, `\[dq]`, `"`, `\(dq`, `"`, `\&`, ``, `\fB`, ``, `\fI`, ``, `\fP`, ``, `\fR`, ``)
)

// manualProgram compiles the example of userfaultfd(2), as it stands on the
// page that is installed here.
func manualProgram(t *testing.T) string {
	t.Helper()
	cc := installed(t, "gcc", "gcc")
	z, err := os.Open(manualPage)
	testutil.Need(t, err == nil, "no "+manualPage+": apt install manpages-dev")
	defer z.Close()
	r, err := gzip.NewReader(z)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	m := manualSource.FindSubmatch(page)
	if m == nil {
		t.Fatalf("there is no program in %s", manualPage)
	}
	dir := t.TempDir()
	source, path := filepath.Join(dir, "manual.c"), filepath.Join(public, "manual")
	if err := os.WriteFile(source, []byte(roff.Replace(string(m[1]))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// It calls errc(3), which is of BSD.
	out, err := exec.CommandContext(t.Context(), cc, "-w", "-pthread", "-include", "errno.h", "-include", "err.h",
		"-Derrc(status,code,...)=(errno=(code),err(status,__VA_ARGS__))", "-o", path, source).CombinedOutput()
	if err != nil {
		t.Fatalf("compile the program of %s: %v\n%s", manualPage, err, out)
	}
	return path
}

// TestManual runs the example of the system call's manual page, which must say
// what it says there: a fault for each page, with the page's address, and the
// content that its thread has made of it.
func TestManual(t *testing.T) {
	program := manualProgram(t)
	const pages = 3
	for _, s := range surroundings {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			out, err := command(t, s.o, true, program, fmt.Sprint(pages)).CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("userfaultfd: ")) {
				t.Fatalf("it has the call without us: %v\n%s", err, out)
			}
			out, err = command(t, s.o, false, program, fmt.Sprint(pages)).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var start uint64
			if n, _ := fmt.Sscanf(string(out), "Address returned by mmap() = %v", &start); n != 1 {
				t.Fatalf("no address\n%s", out)
			}
			// What the two threads print interleaves, within lines as well.
			want := []string{"Address", "returned", "by", "mmap()", "=", fmt.Sprintf("%#x", start)}
			for i := range uint64(pages) {
				page := start + i*uint64(os.Getpagesize())
				text := fmt.Sprintf("fault_handler_thread(): poll() returns: nready = 1; POLLIN = 1; POLLERR = 0 "+
					"UFFD_EVENT_PAGEFAULT event: flags = 0; address = %x (uffdio_copy.copy returned %d)", page, os.Getpagesize())
				for at := page + 0xf; at < page+uint64(os.Getpagesize()); at += 1024 {
					text += fmt.Sprintf(" Read address %#x in main(): %c", at, 'A'+rune(i))
				}
				want = append(want, strings.Fields(text)...)
			}
			got := strings.Fields(string(out))
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("want %q\n%s", want, out)
			}
		})
	}
}
