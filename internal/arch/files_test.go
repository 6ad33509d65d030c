// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	header   = "// SPDX-License-Identifier: Apache-2.0\n"
	maxLines = 500 // of a file that is no test
)

var (
	syscallUse = regexp.MustCompile(`\bsyscall\.([A-Za-z0-9_]+)`)
	errnoName  = regexp.MustCompile(`^(Errno|E[A-Z0-9]+)$`)
)

// fileBreaches walks a module and returns a sentence for every file that
// breaks a rule, and how many files there were.
func fileBreaches(root fs.FS) (out []string, files int, err error) {
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			// Go leaves the same directories out, and nested modules.
			if name != "." && (strings.HasPrefix(base, ".") || base == "testdata") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil && name != "." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		files++
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		out = append(out, checkFile(name, src)...)
		return nil
	})
	return out, files, err
}

func checkFile(name string, src []byte) (out []string) {
	say := func(format string, args ...any) { out = append(out, name+": "+fmt.Sprintf(format, args...)) }
	if !bytes.HasPrefix(src, []byte(header)) {
		say("the first line is not %q", strings.TrimSpace(header))
	}
	test := strings.HasSuffix(name, "_test.go")
	if n := bytes.Count(src, []byte("\n")); n > maxLines && !test {
		say("%d lines, more than %d: split it by concept", n, maxLines)
	}
	if withinAny(path.Dir(name), errnoOnly) && !test {
		for _, use := range syscallUse.FindAllSubmatch(src, -1) {
			if !errnoName.Match(use[1]) {
				say("uses %s: only errnos of that package may be", use[0])
			}
		}
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		say("%v", err)
		return out
	}
	for _, spec := range f.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		switch imp {
		case "C":
			say("imports C: nothing here uses cgo")
		case "unsafe":
			if !test && !strings.Contains(path.Base(name), "_unsafe") && !strings.HasPrefix(name, "internal/sys/") {
				say("imports unsafe: move that to internal/sys or to a file named *_unsafe.go")
			}
		}
	}
	return out
}

func TestFiles(t *testing.T) {
	out, files, err := fileBreaches(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if files < 30 {
		t.Errorf("only %d Go files found: is this the module's root?", files)
	}
	for _, s := range out {
		t.Error(s)
	}
}

// TestFileBreaches breaks each rule once.
func TestFileBreaches(t *testing.T) {
	long := header + "package x\n" + strings.Repeat("\n", maxLines)
	root := fstest.MapFS{}
	for name, text := range map[string]string{
		"good.go":                 header + "package x\n",
		"noheader.go":             "package x\n",
		"late.go":                 "\n" + header + "package x\n",
		"long.go":                 long,
		"long_test.go":            long,
		"cgo.go":                  header + "package x\nimport \"C\"\n",
		"unsafe.go":               header + "package x\nimport \"unsafe\"\n",
		"a/b_unsafe.go":           header + "package x\nimport \"unsafe\"\n",
		"a/b_unsafe_linux.go":     header + "package x\nimport \"unsafe\"\n",
		"internal/sys/mmap.go":    header + "package x\nimport \"unsafe\"\n",
		"broken.go":               header + "pakage x\n",
		"testdata/ignored.go":     "package x\n",
		"nested/go.mod":           "module x\n",
		"nested/ignored.go":       "package x\n",
		".git/ignored.go":         "package x\n",
		"vkernel/errno.go":        header + "package x\nimport \"syscall\"\nvar _ syscall.Errno = syscall.E2BIG\n",
		"vkernel/call.go":         header + "package x\nimport \"syscall\"\nvar _ = syscall.Exit\n",
		"internal/cli/unsafe2.go": header + "package x\nimport u \"unsafe\"\nvar _ u.Pointer\n",
	} {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	out, _, err := fileBreaches(root)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"noheader.go": "first line", "late.go": "first line", "long.go": "lines, more than",
		"cgo.go": "imports C", "unsafe.go": "imports unsafe", "internal/cli/unsafe2.go": "imports unsafe",
		"broken.go": "expected", "vkernel/call.go": "only errnos",
	}
	for _, s := range out {
		name, why, _ := strings.Cut(s, ": ")
		if want[name] == "" || !strings.Contains(why, want[name]) {
			t.Errorf("%s, want %q", s, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s passed", name)
	}
}
