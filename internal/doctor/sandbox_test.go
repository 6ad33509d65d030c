// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/testutil"
)

// The test binary, started again with this set, puts itself into a sandbox
// and prints its report from there. Words, in their order: "nocap=N" gives
// up capability N, "deny=N:E" has a filter answer system call N with errno E.
const sandboxEnv = "DOCTOR_TEST_SANDBOX"

func TestMain(m *testing.M) {
	sandbox.Main()
	if words, found := os.LookupEnv(sandboxEnv); found {
		os.Exit(inSandbox(strings.Fields(words)))
	}
	os.Exit(m.Run())
}

func inSandbox(words []string) int {
	// Capabilities and filters are a thread's own.
	runtime.LockOSThread()
	for _, w := range words {
		var a, b int
		var err error
		if n, _ := fmt.Sscanf(w, "nocap=%d", &a); n == 1 {
			err = dropCap(a)
		} else if n, _ := fmt.Sscanf(w, "deny=%d:%d", &a, &b); n == 2 {
			err = deny(a, b)
		} else {
			err = fmt.Errorf("bad word")
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", w, err)
			return 1
		}
	}
	r, err := Examine(nil)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func dropCap(c int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[c/32].Effective &^= 1 << (c % 32)
	data[c/32].Permitted &^= 1 << (c % 32)
	// The child must not get it back by its exec as root.
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
		return err
	}
	return unix.Capset(&hdr, &data[0])
}

// deny installs a filter that answers one system call with an errno.
func deny(nr, errno int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// examineIn returns the report of a child in a sandbox.
func examineIn(t *testing.T, uid uint32, words ...string) *Report {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // by its link: the path may be closed to uid
	cmd.Dir = "/"
	cmd.Env = os.Environ()
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	return reportOf(t, cmd, words...)
}

// reportOf returns the report that the test binary prints, which cmd starts.
func reportOf(t *testing.T, cmd *exec.Cmd, words ...string) *Report {
	t.Helper()
	cmd.Env = append(cmd.Env, sandboxEnv+"="+strings.Join(words, " "))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("sandbox %v: %v: %s", words, err, &stderr)
	}
	r := new(Report)
	if err := json.Unmarshal(stdout.Bytes(), r); err != nil {
		t.Fatalf("sandbox %v: %v in %s", words, err, &stdout)
	}
	for _, c := range r.Checks {
		if c.Status == No && c.Fix == "" {
			t.Errorf("%s is missing, and no remedy is named", c.Name)
		}
	}
	return r
}

// expect compares one line of a report.
func expect(t *testing.T, r *Report, name string, want Status, found, fix string) {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name != name {
			continue
		}
		if c.Status != want || !strings.Contains(c.Found, found) || !strings.Contains(c.Fix, fix) {
			t.Errorf("got %+v\nwant %s, %q, %q", c, want, found, fix)
		}
		return
	}
	t.Errorf("no line for %s", name)
}

const nobody = 65534

// closedToUsers reports whether the machine is in the state that kernels
// boot into: no descriptor without privilege.
func closedToUsers(t *testing.T) {
	t.Helper()
	testutil.Need(t, os.Geteuid() == 0, "only root can become somebody else")
	p := newProbe()
	testutil.Need(t, p.read(sysctlFile) == "0", "vm.unprivileged_userfaultfd is not 0")
	testutil.Need(t, p.gates().call == nil && p.status().seccomp == 0, "we are in a sandbox already")
}

func TestNobody(t *testing.T) {
	closedToUsers(t)
	r := examineIn(t, nobody)
	expect(t, r, "cap-sys-ptrace", Warn, "not effective", "sudo")
	expect(t, r, "seccomp", OK, "no filter", "")
	expect(t, r, "seccomp-install", Warn, "no_new_privs", "sudo")
	expect(t, r, "userfaultfd-sysctl", Warn, "=0", "sysctl -w vm.unprivileged_userfaultfd=1")
	expect(t, r, "userfaultfd-syscall", Warn, "user mode only", "sysctl -w")
	expect(t, r, "move", OK, "6.8", "")       // what the kernel has can be asked all the same,
	expect(t, r, "ioctl-move", OK, "6.8", "") // and tried
	expect(t, r, "event-fork", No, "CAP_SYS_PTRACE", "sudo")
	expect(t, r, "ptrace", OK, "attached", "")
	expect(t, r, "pidfd-getfd", OK, "took", "")
	expect(t, r, "process-vm-readv", OK, "read", "")
	if r.Run == nil || r.Run.OK {
		t.Errorf("nobody may run: %+v", r.Run)
	}
	expect(t, r, "provide-call", OK, "vm.unprivileged_userfaultfd is 0", "")
	if r.Provide == nil || !r.Provide.OK {
		t.Errorf("provide is for everybody: %+v", r.Provide)
	}
}

// TestContainer is where provide works and run does not.
func TestContainer(t *testing.T) {
	closedToUsers(t)
	for name, user := range map[string]int{"root": 0, "nobody": sandbox.Nobody} {
		t.Run(name, func(t *testing.T) {
			cmd, err := sandbox.Command(t.Context(), sandbox.Options{Container: true, User: user}, "/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			r := reportOf(t, cmd)
			expect(t, r, "seccomp", No, "userfaultfd (EPERM)", "unconfined")
			expect(t, r, "provide-call", OK, "RET_TRAP, whose signal is taken at the ptrace stop; the kernel's own: userfaultfd: EPERM from the seccomp filter", "")
			expect(t, r, "pidfd-getfd", No, "seccomp filter", "pidfd_getfd")
			expect(t, r, "agent", OK, "opened", "")
			if r.Run.OK || !r.Provide.OK {
				t.Errorf("run %+v, provide %+v", r.Run, r.Provide)
			}
		})
	}
}

// TestGates is H18: EPERM has several sources, and the line says which.
func TestGates(t *testing.T) {
	closedToUsers(t)
	t.Run("filter, as root", func(t *testing.T) {
		r := examineIn(t, 0, fmt.Sprintf("deny=%d:%d", unix.SYS_USERFAULTFD, unix.EPERM))
		expect(t, r, "seccomp", No, "userfaultfd (EPERM)", "allow userfaultfd")
		expect(t, r, "userfaultfd-syscall", No, "EPERM from the seccomp filter", "seccomp=unconfined")
		expect(t, r, "userfaultfd-sysctl", OK, "CAP_SYS_PTRACE", "")
		expect(t, r, "userfaultfd-device", OK, "opens", "")
		expect(t, r, "userfaultfd", OK, devicePath, "")
		expect(t, r, "move", OK, "6.8", "")
	})
	t.Run("filter, as nobody", func(t *testing.T) {
		r := examineIn(t, nobody, fmt.Sprintf("deny=%d:%d", unix.SYS_USERFAULTFD, unix.EPERM))
		expect(t, r, "userfaultfd-device", Warn, "EACCES", "setfacl")
		expect(t, r, "userfaultfd", No, "EPERM from the seccomp filter", "seccomp=unconfined")
		expect(t, r, "move", No, "without userfaultfd", "mend userfaultfd")
		expect(t, r, "ioctl-move", No, "without userfaultfd", "mend userfaultfd")
		expect(t, r, "ptrace", OK, "attached", "")
	})
	t.Run("hidden by ENOSYS", func(t *testing.T) {
		r := examineIn(t, 0, fmt.Sprintf("deny=%d:%d", unix.SYS_USERFAULTFD, unix.ENOSYS))
		expect(t, r, "userfaultfd-syscall", No, "hides it", "seccomp")
	})
	t.Run("no capability", func(t *testing.T) {
		r := examineIn(t, 0, fmt.Sprintf("nocap=%d", unix.CAP_SYS_PTRACE))
		expect(t, r, "userfaultfd-syscall", Warn, "lack CAP_SYS_PTRACE", "--cap-add SYS_PTRACE")
		expect(t, r, "userfaultfd", OK, devicePath, "") // root may open the node
		expect(t, r, "event-fork", No, "EPERM", "--cap-add SYS_PTRACE")
	})
	t.Run("neither", func(t *testing.T) {
		r := examineIn(t, nobody)
		expect(t, r, "userfaultfd", No, "neither way", "sysctl -w vm.unprivileged_userfaultfd=1")
	})
}

// TestRefusedCalls has a filter refuse each call that run makes of another
// process, and looks for the line that says so.
func TestRefusedCalls(t *testing.T) {
	testutil.Need(t, newProbe().status().seccomp == 0, "we are in a sandbox already")
	for _, tc := range []struct {
		call  int
		check string
		want  Status
	}{
		{unix.SYS_PTRACE, "ptrace", No},
		{unix.SYS_PROCESS_VM_READV, "process-vm-readv", No},
		{unix.SYS_PIDFD_GETFD, "pidfd-getfd", No},
		{unix.SYS_PROCESS_VM_WRITEV, "agent", No},
		{unix.SYS_MEMFD_CREATE, "agent", No},
		{unix.SYS_PIDFD_OPEN, "agent", No},
		{unix.SYS_SECCOMP, "seccomp-install", No},
		{unix.SYS_KCMP, "kcmp", Warn},
	} {
		for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS} {
			t.Run(tc.check+"/"+errnoName(errno), func(t *testing.T) {
				r := examineIn(t, 0, fmt.Sprintf("deny=%d:%d", tc.call, errno))
				expect(t, r, tc.check, tc.want, "seccomp filter", "seccomp=unconfined")
				expect(t, r, "seccomp", tc.want, errnoName(errno), "unconfined")
				if tc.want == No && r.Run.OK {
					t.Error("run is said to work")
				}
				if r.Provide.OK != (tc.want != No || tc.check == "pidfd-getfd") {
					t.Errorf("provide: %+v", r.Provide)
				}
			})
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
