// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"os"
	"os/exec"
	"testing"
)

// TestSizes measures a process that lives, and one that ends between two
// measurements, and keeps no file that it was told to forget.
func TestSizes(t *testing.T) {
	var s Sizes
	defer s.Close()
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	for range 2 {
		for _, p := range []int{os.Getpid(), pid} {
			if u, err := s.Resident(p); err != nil || u.Anon == 0 {
				t.Errorf("process %d has %+v (%v)", p, u, err)
			}
		}
	}
	before := s.open[os.Getpid()]
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if u, err := s.Resident(pid); err == nil {
		t.Errorf("a process that has ended has %+v", u)
	}
	if _, err := s.Resident(os.Getpid()); err != nil || s.open[os.Getpid()] != before {
		t.Errorf("opened a file again (%v)", err)
	}
	s.Forget(os.Getpid())
	s.Forget(pid) // it is not there any more
	if len(s.open) != 0 {
		t.Errorf("%d files stay open that nobody uses", len(s.open))
	}
}

// TestSizesFew keeps the number of open files small.
func TestSizesFew(t *testing.T) {
	var s Sizes
	defer s.Close()
	for i := range maxOpen {
		if s.open == nil {
			s.open = make(map[int]int)
		}
		s.open[-1-i] = -1
	}
	if u, err := s.Resident(os.Getpid()); err != nil || u.Anon == 0 {
		t.Errorf("this process has %+v (%v)", u, err)
	}
	if len(s.open) > maxOpen {
		t.Errorf("%d files are open, at most %d wanted", len(s.open), maxOpen)
	}
}
