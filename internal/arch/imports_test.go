// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/faultline-go/faultline"

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Standard   bool
	ForTest    string
	Imports    []string // by its own files
	Deps       []string // by anything below
	CgoFiles   []string
}

// rel returns the path within the module, or false for one outside.
func rel(path string) (string, bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// within reports whether package p is tree or lies below it.
func within(p, tree string) bool {
	return p == tree || strings.HasPrefix(p, tree+"/")
}

func withinAny(p string, trees []string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return within(p, tree) })
}

// only says of a tree which packages of the module it may reach, itself
// included. These are the leaves that everything else rests on.
var only = []struct {
	tree string
	may  []string
}{
	{"mem", nil},
	{"uffd/uapi", []string{"mem"}},
	{"uffd", []string{"mem", "internal/sys"}},
	{"vkernel", []string{"mem", "uffd/uapi", "internal/interval", "internal/waitq", "internal/bitmap"}},
	{"internal/sys", []string{"mem", "uffd/uapi"}},
	{"internal/size", nil},
	{"internal/bpf", nil},
	{"internal/histogram", nil},
	{"internal/uffdtrace", []string{"mem", "uffd/uapi", "internal/histogram"}},
	{"internal/model", []string{"mem", "uffd/uapi", "vkernel", "internal/interval", "internal/waitq", "internal/bitmap"}},
	{"conformance", []string{"mem", "uffd/uapi", "vkernel", "internal/interval", "internal/waitq", "internal/bitmap"}},
}

// never says of a tree what it must not reach, exceptions aside.
var never = []struct {
	tree   string
	not    []string
	except []string
	why    string
}{
	{"pager", []string{"uffd", "vkernel", "tracee", "runner", "provider", "internal/cli"}, []string{"uffd/uapi"},
		"it serves any descriptor and does not know which"},
	{"store", []string{"pager", "uffd", "vkernel", "tracee", "runner", "provider", "internal/cli"}, nil,
		"it keeps pages and does not know whose"},
	{"tracee", []string{"pager", "store", "vkernel", "runner", "provider", "internal/cli"}, nil,
		"it controls a process and has no policy"},
	{"runner", []string{"internal/cli"}, nil,
		"it serves commands and does not know them"},
	{"provider", []string{"pager", "store", "runner", "internal/cli"}, nil,
		"it has its memory managed and does not know by whom"},
	{"internal/collect", []string{"pager", "store", "vkernel", "runner", "provider", "uffd", "internal/watch", "internal/cli"}, []string{"uffd/uapi"},
		"it tells what programs do, whoever sees that"},
	{"internal/watch", []string{"pager", "store", "vkernel", "runner", "provider", "uffd", "internal/cli"}, []string{"uffd/uapi"},
		"it sees what programs do and does nothing itself"},
	{"internal/doctor", []string{"pager", "store", "tracee", "runner", "internal/cli"}, nil,
		"run asks it before it does anything else"},
}

// doors says which trees may import a module from outside, in code that is
// not a test. What is not listed may be imported by tests alone.
var doors = map[string][]string{
	"golang.org/x/sys":              {"internal", "uffd", "tracee", "runner", "provider", "bench", "conformance"},
	"golang.org/x/term":             {"internal/cli", "runner"},
	"golang.org/x/sync":             {"internal", "store", "pager", "runner", "tracee"},
	"github.com/spf13/cobra":        {"internal/cli"},
	"github.com/spf13/pflag":        {"internal/cli"},
	"github.com/klauspost/compress": {"store"},
	"github.com/pierrec/lz4/v4":     {"store"},
	"github.com/zeebo/xxh3":         {"store"},
}

// noCalls are the trees without any system call, so that they build and run
// on every system.
var noCalls = []string{"mem", "uffd/uapi", "vkernel", "internal/model", "internal/uffdtrace", "internal/histogram"}

// errnoOnly are those of noCalls that may import syscall for its errnos.
var errnoOnly = []string{"vkernel", "internal/model"}

// breaches returns a sentence for every rule that pkgs break.
func breaches(pkgs []pkg) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, p := range pkgs {
		name, ours := rel(p.ImportPath)
		if !ours {
			continue
		}
		if len(p.CgoFiles) > 0 {
			say("%s uses cgo: %v", name, p.CgoFiles)
		}
		for _, dep := range p.Deps {
			if d, ours := rel(dep); ours {
				checkDep(name, d, say)
			}
		}
		for _, imp := range p.Imports {
			checkImport(name, imp, say)
		}
	}
	return out
}

func checkDep(name, dep string, say func(string, ...any)) {
	for _, r := range only {
		// The longest tree decides: uffd/uapi is bound more than uffd.
		if within(name, r.tree) && !within(dep, r.tree) && !withinAny(dep, r.may) {
			say("%s reaches %s; all it may reach is %v", name, dep, r.may)
		}
	}
	for _, r := range never {
		if within(name, r.tree) && withinAny(dep, r.not) && !withinAny(dep, r.except) {
			say("%s reaches %s, but %s", name, dep, r.why)
		}
	}
	if within(dep, "cmd") || within(dep, "internal/cli") && !within(name, "cmd") && !within(name, "internal/cli") {
		say("%s reaches %s, which is for main alone", name, dep)
	}
}

func checkImport(name, imp string, say func(string, ...any)) {
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		// Errnos are values of a type of syscall; TestFiles sees to it that
		// nothing else of it is used there.
		errnos := imp == "syscall" && withinAny(name, errnoOnly)
		if (imp == "syscall" || imp == "os") && withinAny(name, noCalls) && !errnos {
			say("%s imports %s, but it makes no system calls", name, imp)
		}
		return // the standard library
	}
	if inner, ours := rel(imp); ours {
		if within(name, "examples") && strings.Contains("/"+inner+"/", "/internal/") {
			say("%s imports %s, which the programs that it is an example for cannot", name, inner)
		}
		return
	}
	for mod, trees := range doors {
		if !within(imp, mod) {
			continue
		}
		// A package may have a door of its own: a directory named internal.
		system := mod == "golang.org/x/sys"
		inner := system && strings.Contains("/"+name+"/", "/internal/")
		switch {
		case system && withinAny(name, noCalls):
			say("%s imports %s, but it makes no system calls", name, imp)
		case !withinAny(name, trees) && !inner:
			say("%s imports %s, which only %v may", name, imp, trees)
		}
		return
	}
	say("%s imports %s, which no package may outside of its tests", name, imp)
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Standard,ForTest,Imports,Deps,CgoFiles", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// Only with it do packages show that they would use cgo if they could.
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=1", "GOOS=linux")
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(b)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	for _, must := range []string{"mem", "uffd", "uffd/uapi", "vkernel", "pager", "store", "internal/cli"} {
		if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.ImportPath == module+"/"+must }) {
			t.Errorf("go list does not know %s: is the rule about it stale?", must)
		}
	}
	for _, s := range breaches(pkgs) {
		t.Error(s)
	}
}

// TestBreaches breaks each rule once, so that none is there for show.
func TestBreaches(t *testing.T) {
	in := func(names ...string) []string {
		for i, n := range names {
			names[i] = module + "/" + n
		}
		return names
	}
	for _, tc := range []struct {
		p    pkg
		want string // empty: allowed
	}{
		{pkg{ImportPath: "mem", Deps: in("internal/sys")}, "all it may reach"},
		{pkg{ImportPath: "uffd/uapi", Deps: in("mem")}, ""},
		{pkg{ImportPath: "uffd/uapi", Deps: in("uffd")}, "all it may reach"},
		{pkg{ImportPath: "uffd", Deps: in("mem", "uffd/uapi", "internal/sys")}, ""},
		{pkg{ImportPath: "uffd", Deps: in("pager")}, "all it may reach"},
		{pkg{ImportPath: "vkernel", Deps: in("internal/sys")}, "all it may reach"},
		{pkg{ImportPath: "pager", Deps: in("uffd/uapi", "store", "pager/internal/ahead")}, ""},
		{pkg{ImportPath: "pager", Deps: in("uffd")}, "does not know which"},
		{pkg{ImportPath: "pager/internal/evict", Deps: in("runner")}, "does not know which"},
		{pkg{ImportPath: "store/file", Deps: in("pager")}, "does not know whose"},
		{pkg{ImportPath: "tracee", Deps: in("store/mem")}, "no policy"},
		{pkg{ImportPath: "runner", Deps: in("uffd", "pager", "store/file", "tracee")}, ""},
		{pkg{ImportPath: "runner", Deps: in("internal/cli")}, "does not know them"},
		{pkg{ImportPath: "provider", Deps: in("pager")}, "does not know by whom"},
		{pkg{ImportPath: "conformance", Deps: in("vkernel", "conformance/internal/puppet")}, ""},
		{pkg{ImportPath: "conformance", Deps: in("uffd")}, "all it may reach"},
		{pkg{ImportPath: "internal/uffdtrace", Deps: in("tracee")}, "all it may reach"},
		{pkg{ImportPath: "internal/uffdtrace", Imports: []string{"golang.org/x/sys/unix"}}, "no system calls"},
		{pkg{ImportPath: "internal/watch", Deps: in("tracee", "uffd/uapi", "internal/uffdtrace")}, ""},
		{pkg{ImportPath: "internal/watch", Deps: in("uffd")}, "does nothing itself"},
		{pkg{ImportPath: "internal/collect", Deps: in("tracee", "uffd/uapi", "internal/uffdtrace")}, ""},
		{pkg{ImportPath: "internal/collect", Deps: in("provider")}, "whoever sees that"},
		{pkg{ImportPath: "bench/x", Deps: in("internal/cli")}, "for main alone"},
		{pkg{ImportPath: "cmd/faultline", Deps: in("internal/cli")}, ""},
		{pkg{ImportPath: "mem", Imports: []string{"syscall"}}, "no system calls"},
		{pkg{ImportPath: "mem", Imports: []string{"fmt"}}, ""},
		{pkg{ImportPath: "vkernel", Imports: []string{"syscall"}}, ""},
		{pkg{ImportPath: "vkernel", Imports: []string{"os"}}, "no system calls"},
		{pkg{ImportPath: "pager", Imports: []string{"golang.org/x/sys/unix"}}, "which only"},
		{pkg{ImportPath: "uffd/uapi", Imports: []string{"golang.org/x/sys/unix"}}, "no system calls"},
		{pkg{ImportPath: "store", Imports: []string{"golang.org/x/sys/unix"}}, "which only"},
		{pkg{ImportPath: "store/internal/disk", Imports: []string{"golang.org/x/sys/unix"}}, ""},
		{pkg{ImportPath: "internal/place", Imports: []string{"golang.org/x/sys/unix"}}, ""},
		{pkg{ImportPath: "store/mem", Imports: []string{"github.com/klauspost/compress/zstd"}}, ""},
		{pkg{ImportPath: "pager", Imports: []string{"github.com/klauspost/compress/zstd"}}, "which only"},
		{pkg{ImportPath: "runner", Imports: []string{"github.com/spf13/cobra"}}, "which only"},
		{pkg{ImportPath: "internal/testutil", Imports: []string{"github.com/google/go-cmp/cmp"}}, "outside of its tests"},
		{pkg{ImportPath: "mem", CgoFiles: []string{"a.go"}}, "uses cgo"},
		{pkg{ImportPath: "examples/x", Imports: in("internal/sys")}, "cannot"},
		{pkg{ImportPath: "examples/x", Imports: in("pager/internal/evict")}, "cannot"},
		{pkg{ImportPath: "examples/x", Imports: in("uffd"), Deps: in("internal/sys")}, ""},
	} {
		tc.p.ImportPath = module + "/" + tc.p.ImportPath
		got := breaches([]pkg{tc.p})
		switch {
		case tc.want == "" && len(got) > 0:
			t.Errorf("%+v: %v, want nothing", tc.p, got)
		case tc.want != "" && (len(got) == 0 || !strings.Contains(got[0], tc.want)):
			t.Errorf("%+v: %v, want %q", tc.p, got, tc.want)
		}
	}
}
