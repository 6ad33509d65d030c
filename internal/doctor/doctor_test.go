// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func TestNames(t *testing.T) {
	names := Names()
	if got := slices.Compact(slices.Sorted(slices.Values(names))); len(got) != len(names) {
		t.Errorf("a name is used twice: %v", names)
	}
	for _, set := range Sets() {
		if slices.Contains(names, set) {
			t.Errorf("%q names a check and a set", set)
		}
		for _, n := range needs(set) {
			if !slices.Contains(names, n) {
				t.Errorf("%s needs %q, which is no check", set, n)
			}
		}
	}
	for _, f := range uapi.FeatureTable() {
		if !slices.Contains(names, featureName(f)) || featureWhy[f.Bit] == "" {
			t.Errorf("feature %s has no check or no reason", f.Name)
		}
	}
	for _, c := range checks() {
		if c.why == "" {
			t.Errorf("%s does not say why", c.name)
		}
	}
}

func TestExpand(t *testing.T) {
	got, err := Expand([]string{"move", "run", "move", "wp-async"})
	if err != nil {
		t.Fatal(err)
	}
	want := append([]string{"move"}, slices.DeleteFunc(slices.Clone(runNeeds), func(n string) bool { return n == "move" })...)
	want = append(want, "wp-async")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	_, err = Examine([]string{"ptrace", "teleport"})
	var unknown *UnknownError
	if !errors.As(err, &unknown) || unknown.Name != "teleport" {
		t.Fatalf("Examine(teleport): %v", err)
	}
	for _, n := range append(Names(), Sets()...) {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("the error does not offer %q", n)
		}
	}
}

// TestReportForm pins the names and kinds of the JSON, which scripts rely on.
func TestReportForm(t *testing.T) {
	r, err := Examine(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]any
	if err := json.Unmarshal(b, &top); err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]string)
	for k, v := range top {
		switch v.(type) {
		case string:
			kinds[k] = "string"
		case []any:
			kinds[k] = "list"
		case map[string]any:
			kinds[k] = "object"
		}
	}
	if d := cmp.Diff(map[string]string{
		"schema": "string", "kernel": "string", "arch": "string",
		"checks": "list", "required": "object", "run": "object", "provide": "object",
	}, kinds); d != "" {
		t.Errorf("top level: %s", d)
	}
	if top["schema"] != "faultline/doctor/1" {
		t.Errorf("schema %v", top["schema"])
	}
	var names []string
	for _, c := range top["checks"].([]any) {
		m := c.(map[string]any)
		names = append(names, m["name"].(string))
		for k := range m {
			if !slices.Contains([]string{"name", "status", "found", "why", "fix", "blocked_by"}, k) {
				t.Errorf("%s has a %q", m["name"], k)
			}
		}
		for _, k := range []string{"name", "status", "found", "why"} {
			if s, _ := m[k].(string); s == "" || strings.Contains(s, "\n") {
				t.Errorf("%s: %s is %q", m["name"], k, s)
			}
		}
		if s := m["status"].(string); s != "ok" && s != "warn" && s != "no" {
			t.Errorf("%s has status %q", m["name"], s)
		}
	}
	if d := cmp.Diff(Names(), names); d != "" {
		t.Error(d)
	}
	if missing := top["run"].(map[string]any)["missing"]; missing == nil {
		t.Error("run.missing is null, not a list")
	}
}

// TestCheckRunAgrees holds the fast way against the slow one.
func TestCheckRunAgrees(t *testing.T) {
	r, err := Examine([]string{SetRun})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Checks) != len(runNeeds) {
		t.Errorf("%d checks for %d needs", len(r.Checks), len(runNeeds))
	}
	if got := CheckRun(); (got == nil) != r.Run.OK {
		t.Errorf("CheckRun: %v, Examine: %+v", got, r.Run)
	}
	r, err = Examine([]string{SetProvide})
	if err != nil {
		t.Fatal(err)
	}
	if got := CheckProvide(); (got == nil) != r.Provide.OK || r.Run != nil {
		t.Errorf("CheckProvide: %v, Examine: %+v", got, r)
	}
	r, err = Examine([]string{SetRun})
	if err != nil {
		t.Fatal(err)
	}
	testutil.Need(t, r.Run.OK, "run does not work here: "+strings.Join(r.Run.Missing, ", "))
}

func TestLeavesNothing(t *testing.T) {
	before := descriptors(t)
	for range 3 {
		if _, err := Examine(nil); err != nil {
			t.Fatal(err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	// Whoever had no children before has none now.
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("wait for any child: %d, %v; want ECHILD", pid, err)
	}
}

// fake is a probe of a machine that does not exist: Linux 5.10 where a
// handshake works.
func fake(files map[string]string) *probe {
	root := fstest.MapFS{}
	for name, text := range files {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return &probe{
		root: root, release: "5.10.0-8-amd64",
		status:  func() status { return status{known: true} },
		child:   func() childWork { return childWork{} },
		gates:   func() gates { return gates{} },
		refused: func() []refusal { return nil },
		uffd:    func() abi { return abi{} },
		trap:    func() unix.Errno { return 0 },
	}
}

func find(t *testing.T, p *probe, name string) Result {
	t.Helper()
	for _, c := range checks() {
		if c.name == name {
			return c.result(p)
		}
	}
	t.Fatalf("no check %q", name)
	return Result{}
}

func TestFindings(t *testing.T) {
	const trace = 1 << unix.CAP_SYS_PTRACE
	for _, tc := range []struct {
		title string
		check string
		files map[string]string
		set   func(*probe)
		want  Status
		found string
		fix   string
	}{
		{"old kernel lacks MOVE", "move", nil, nil, No, "needs Linux 6.8, this is 5.10.0", "boot Linux 6.8"},
		{"old kernel lacks the ioctl", "ioctl-move", nil, nil, No, "needs Linux 6.8", "boot Linux 6.8"},
		{"new kernel built without", "move", nil, func(p *probe) { p.release = "6.12.1" }, No, "built without", "kernel built with it"},
		{"backport", "move", nil, func(p *probe) {
			p.uffd = func() abi { return abi{features: uapi.UFFD_FEATURE_MOVE} }
		}, OK, "Linux 6.8", ""},
		{"old kernel is a warning only", "kernel", nil, nil, Warn, "5.10.0-8-amd64", "6.8"},
		{"kernel exactly", "kernel", nil, func(p *probe) { p.release = "6.8.0" }, OK, "6.8.0", ""},
		{"fork needs a capability", "event-fork", nil, func(p *probe) {
			p.uffd = func() abi { return abi{features: uapi.UFFD_API_FEATURES, fork: unix.EPERM} }
		}, No, "CAP_SYS_PTRACE", "root"},
		{"move offered but broken", "ioctl-move", nil, func(p *probe) {
			p.uffd = func() abi { return abi{anon: uapi.UFFD_API_RANGE_IOCTLS, move: unix.EINVAL} }
		}, No, "could not be moved", "report"},
		{"no descriptor blocks features", "wp-async", nil, func(p *probe) {
			p.uffd = func() abi { return abi{err: unix.EPERM} }
		}, No, "without userfaultfd", "mend userfaultfd"},
		{"sysctl and no capability", "userfaultfd-sysctl", map[string]string{sysctlFile: "0\n"}, nil, Warn, "=0: only", "sysctl -w"},
		{"sysctl open", "userfaultfd-sysctl", map[string]string{sysctlFile: "1\n"}, nil, OK, "everyone", ""},
		{"H18: the sysctl's gate", "userfaultfd-syscall", map[string]string{sysctlFile: "0\n"}, func(p *probe) {
			p.gates = func() gates { return gates{call: unix.EPERM} }
		}, Warn, "vm.unprivileged_userfaultfd is 0", "sysctl -w"},
		{"H18: no such call", "userfaultfd-syscall", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"userfaultfd", unix.ENOSYS}} }
		}, No, "this kernel has no userfaultfd", "use a kernel"},
		{"H18: ENOSYS under a filter", "userfaultfd-syscall", nil, func(p *probe) {
			p.status = func() status { return status{known: true, seccomp: 2} }
			p.refused = func() []refusal { return []refusal{{"userfaultfd", unix.ENOSYS}} }
		}, No, "the seccomp filter", "allow userfaultfd"},
		{"H18: a security module", "userfaultfd-syscall", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"userfaultfd", unix.EACCES}} }
		}, No, "EACCES, though no seccomp filter", "audit log"},
		{"H18: the device's permission", "userfaultfd-device", nil, func(p *probe) {
			p.gates = func() gates { return gates{device: unix.EACCES} }
		}, Warn, "may not open", "setfacl"},
		{"H18: no device", "userfaultfd-device", nil, func(p *probe) {
			p.gates = func() gates { return gates{device: unix.ENOENT} }
		}, Warn, "does not exist", "mknod"},
		{"H18: device group", "userfaultfd-device", nil, func(p *probe) {
			p.gates = func() gates { return gates{device: unix.EPERM} }
		}, Warn, "EPERM", "--device"},
		{"out of descriptors", "userfaultfd", nil, func(p *probe) {
			p.gates = func() gates { return gates{call: unix.EMFILE, device: unix.EMFILE} }
		}, No, "neither way", "ulimit -n"},
		{"yama 1", "yama", map[string]string{yamaFile: "1"}, nil, OK, "its children", ""},
		{"yama 2", "yama", map[string]string{yamaFile: "2"}, nil, No, "only CAP_SYS_PTRACE", "ptrace_scope=1"},
		{"yama 2 with the capability", "yama", map[string]string{yamaFile: "2"}, func(p *probe) {
			p.status = func() status { return status{known: true, caps: trace} }
		}, OK, "we have", ""},
		{"yama 3", "yama", map[string]string{yamaFile: "3"}, nil, No, "nobody", "reboot"},
		{"ptrace refused by yama 3", "ptrace", map[string]string{yamaFile: "3"}, func(p *probe) {
			p.child = func() childWork { return childWork{attach: unix.EPERM} }
		}, No, "operation not permitted", "reboot"},
		{"no more processes", "ptrace", nil, func(p *probe) {
			p.child = func() childWork { return childWork{attach: unix.EAGAIN} }
		}, No, "temporarily", "ulimit -u"},
		{"kcmp is not needed", "kcmp", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"kcmp", unix.ENOSYS}} }
		}, Warn, "no kcmp", "kernel"},
		{"no proc", "cap-sys-ptrace", nil, func(p *probe) {
			p.status = func() status { return status{} }
		}, Warn, "could not tell", "mount"},
		{"a filter without effect", "seccomp", nil, func(p *probe) {
			p.status = func() status { return status{known: true, seccomp: 2} }
		}, OK, "lets through", ""},
		{"a filter refusing", "seccomp", nil, func(p *probe) {
			p.status = func() status { return status{known: true, seccomp: 2} }
			p.refused = func() []refusal { return []refusal{{"ptrace", unix.EPERM}, {"kcmp", unix.EPERM}} }
		}, No, "ptrace (EPERM), kcmp (EPERM)", "unconfined"},
		{"no_new_privs", "seccomp-install", nil, func(p *probe) {
			p.status = func() status { return status{known: true, noNewPrivs: true} }
		}, OK, "no_new_privs", ""},
		{"no_new_privs to be set", "seccomp-install", nil, nil, Warn, "sudo", "root"},
		{"no RET_TRACE", "seccomp-install", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"seccomp", unix.EOPNOTSUPP}} }
		}, No, "RET_TRACE", "CONFIG_SECCOMP_FILTER"},
		{"provide beside the kernel's call", "provide-call", nil, nil, OK, "call opens for faults of user and kernel mode, too", ""},
		{"provide where a filter refuses", "provide-call", nil, func(p *probe) {
			p.status = func() status { return status{known: true, seccomp: 2} }
			p.refused = func() []refusal { return []refusal{{"userfaultfd", unix.EPERM}} }
		}, OK, "EPERM from the seccomp filter", ""},
		{"provide without the call", "provide-call", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"userfaultfd", unix.ENOSYS}} }
		}, OK, "this kernel has no userfaultfd", ""},
		{"no filters", "provide-call", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"seccomp", unix.ENOSYS}} }
		}, No, "without seccomp-install", "mend seccomp-install"},
		{"no RET_TRAP", "provide-call", nil, func(p *probe) {
			p.trap = func() unix.Errno { return unix.EOPNOTSUPP }
		}, No, "RET_TRAP action", "CONFIG_SECCOMP_FILTER"},
		{"no agent", "agent", nil, func(p *probe) {
			p.refused = func() []refusal { return []refusal{{"memfd_create", unix.EPERM}} }
		}, No, "memfd_create: EPERM", "memfd_create"},
		{"usual mappings", "max-map-count", map[string]string{"proc/sys/vm/max_map_count": "65530\n"}, nil, OK, "256.0MiB", ""},
		{"few mappings", "max-map-count", map[string]string{"proc/sys/vm/max_map_count": "1000\n"}, nil, Warn, "=1000", "vm.max_map_count=1048576"},
		{"hugepages", "hugepages", map[string]string{
			"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":   "8\n",
			"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "3\n",
			"sys/kernel/mm/transparent_hugepage/enabled":              "always [madvise] never\n",
		}, nil, OK, "8 of 2MiB reserved, 3 free; transparent: madvise", ""},
	} {
		t.Run(tc.title, func(t *testing.T) {
			p := fake(tc.files)
			if tc.set != nil {
				tc.set(p)
			}
			r := find(t, p, tc.check)
			// What root is told differs: it has sudo's powers already.
			fix := strings.ReplaceAll(r.Fix, "--cap-add", "root --cap-add")
			if r.Status != tc.want || !strings.Contains(r.Found, tc.found) || !strings.Contains(fix, tc.fix) {
				t.Errorf("got %+v, want %s, %q, %q", r, tc.want, tc.found, tc.fix)
			}
			if tc.want == OK && r.Fix != "" {
				t.Errorf("a remedy for what is well: %+v", r)
			}
		})
	}
}

func TestStoreAt(t *testing.T) {
	if f := storeAt(t.TempDir() + "/absent"); f.status != Warn || !strings.Contains(f.fix, "mkdir") {
		t.Errorf("absent: %+v", f)
	}
	if f := storeAt("/dev/shm"); f.status != Warn || !strings.Contains(f.found, "memory") {
		var fsinfo unix.Statfs_t
		if unix.Statfs("/dev/shm", &fsinfo) == nil && uint32(fsinfo.Type) == unix.TMPFS_MAGIC {
			t.Errorf("tmpfs: %+v", f)
		}
	}
	if f := storeAt("/proc"); f.status != Warn {
		t.Errorf("/proc: %+v", f)
	}
}

func TestRunError(t *testing.T) {
	e := &RunError{Missing: []Result{
		{Name: "userfaultfd", Status: No, Found: "neither way", Fix: "be root"},
		{Name: "move", Status: No, Found: "cannot be asked", Fix: "mend userfaultfd first", BlockedBy: "userfaultfd"},
		{Name: "ptrace", Status: No, Found: "EPERM", Fix: "be root"},
	}}
	if got, want := e.Error(), "this machine lacks what run needs: userfaultfd: neither way; ptrace: EPERM"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := e.Hint(), "be root; see faultline doctor --require run"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	e.Set = SetProvide
	if !strings.Contains(e.Error(), "what provide needs") || !strings.Contains(e.Hint(), "--require provide") {
		t.Errorf("%q, %q", e.Error(), e.Hint())
	}
}
