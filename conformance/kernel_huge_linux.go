// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package conformance

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hugeDir is where the kernel tells of its pool of pages of 2 MiB.
const hugeDir = "/sys/kernel/mm/hugepages/hugepages-2048kB/"

// hugePool is the pool while it is ours. Programs like this one lock the file
// with its size, so that none takes what another has counted on, nor restores
// a size that was already changed.
type hugePool struct {
	lock   *os.File
	before int // pages when we came
}

// poolPatience is how long another program may have the pool.
const poolPatience = time.Minute

func takeHugePool() (*hugePool, error) {
	f, err := os.Open(hugeDir + "nr_hugepages")
	if err != nil {
		return nil, fmt.Errorf("no huge pages of 2 MiB here: %w", err)
	}
	for deadline := time.Now().Add(poolPatience); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("the pool of huge pages is another program's: %w", err)
		}
	}
	before, err := readPool("nr_hugepages")
	if err != nil {
		f.Close()
		return nil, err
	}
	return &hugePool{lock: f, before: before}, nil
}

func readPool(name string) (int, error) {
	b, err := os.ReadFile(hugeDir + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func resizePool(n int) error {
	return os.WriteFile(hugeDir+"nr_hugepages", []byte(strconv.Itoa(n)), 0)
}

// free returns how many pages may be taken.
func (p *hugePool) free() (int, error) {
	free, err := readPool("free_hugepages")
	if err != nil {
		return 0, err
	}
	reserved, err := readPool("resv_hugepages")
	return free - reserved, err
}

// want sees to it that n pages may be taken.
func (p *hugePool) want(n int) error {
	free, err := p.free()
	if err != nil || free >= n {
		return err
	}
	total, err := readPool("nr_hugepages")
	if err != nil {
		return err
	}
	if err := resizePool(total + n - free); err != nil {
		return fmt.Errorf("%d huge pages of 2 MiB are free, %d are needed (run it as root, or sysctl -w vm.nr_hugepages=%d): %w",
			free, n, total+n-free, err)
	}
	if free, err = p.free(); err == nil && free < n {
		err = fmt.Errorf("%d huge pages of 2 MiB are free, %d are needed, and memory for more cannot be had", free, n)
	}
	return err
}

// give restores the pool. Pages that a dying process still has leave it when
// they are freed; who takes the pool next must not count them.
func (p *hugePool) give() error {
	defer p.lock.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		now, err := readPool("nr_hugepages")
		if err != nil || now == p.before {
			return err
		}
		if err := resizePool(p.before); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the pool of huge pages was %d and is %d: what is left is in use or reserved", p.before, now)
		}
	}
}

// sharedPool is the pool as this process has it, for all its backends.
var sharedPool struct {
	sync.Mutex
	pool  *hugePool // protected by the mutex; nil while nobody uses it
	users int       // protected by the mutex
}

func (k *kernel) Huge(n int) (err error) {
	sharedPool.Lock()
	defer sharedPool.Unlock()
	if !k.huge {
		if sharedPool.users == 0 {
			if sharedPool.pool, err = takeHugePool(); err != nil {
				return err
			}
		}
		sharedPool.users++
		k.huge = true
	}
	return sharedPool.pool.want(n)
}

// Close gives the huge pages back, if it is the last of this process to have
// asked for some.
func (k *kernel) Close() error {
	sharedPool.Lock()
	defer sharedPool.Unlock()
	if !k.huge {
		return nil
	}
	k.huge = false
	sharedPool.users--
	if sharedPool.users > 0 {
		return nil
	}
	return sharedPool.pool.give()
}
