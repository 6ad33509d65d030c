// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

var poisonCases = []Case{
	{Name: "poison/access", Rows: []string{"B.10.23", "C.32"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		u.Poison(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
		p.Load(r.At(0) + 5).Poisoned(r.At(0) + 5)
		p.Store(r.At(0), 1).Poisoned(r.At(0))
		u.Quiet()
		// A system call gets EFAULT.
		pipe := p.scratch(8)
		p.Do(Pipe, pipe, 0)
		ends := le64(p.get(pipe, 8))
		p.Begin(Write, ends>>32, r.At(0), 1).Err(EFAULT)
	}},
	{Name: "poison/resolves", Rows: []string{"B.10.23"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
		u.Poison(r.Range, uapi.UFFDIO_POISON_MODE_DONTWAKE).Is(OK, int64(r.Page()))
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Poisoned(r.Start)
	}},
	{Name: "poison/present", Rows: []string{"B.10.20", "B.10.21"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		u.Poison(r.Range, 0).Failed(EEXIST)
		r.Has(p.Thread, 0, 'a')
	}},
	{Name: "poison/one-mapping", Rows: []string{"B.10.20"}, Memory: shared, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		alias := r.Alias()
		p.Puts(alias.Start, 'x')
		u.Watch(r.Range, missing)
		u.Poison(r.Range, 0).Is(OK, int64(r.Page()))
		p.Load(r.Start).Poisoned(r.Start)
		p.Sees(alias.Start, 'x')
	}},
	{Name: "poison/dropped", Rows: []string{"B.10.23"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Poison(r.Range, 0).Is(OK, int64(r.Page()))
		p.Do(Madvise, r.Start, r.Len(), MadvDontneed)
		t := p.NewThread().Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "poison/inherited", Rows: []string{"B.10.23"}, Memory: private, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Poison(r.Range, 0).Is(OK, int64(r.Page()))
		child := p.Fork()
		child.Load(r.Start).Poisoned(r.Start)
	}},
	{Name: "poison/moved", Rows: []string{"B.10.23"}, Memory: small, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Poison(r.Range, 0).Is(OK, int64(r.Page()))
		to := p.place(r.Len())
		p.Do(Mremap, r.Start, r.Len(), r.Len(), MremapMayMove|MremapFixed, to.Start)
		p.Load(to.Start).Poisoned(to.Start)
	}},
}

var continueCases = []Case{
	{Name: "continue/anon", Rows: []string{"B.10.11", "B.10.19"}, Memory: anon, Features: uapi.UFFD_FEATURE_MINOR_SHMEM, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Continue(r.Range, 0).Failed(EINVAL)
	}},
	{Name: "continue/maps", Rows: []string{"B.10.19"}, Memory: files, Features: uapi.UFFD_FEATURE_MINOR_SHMEM | uapi.UFFD_FEATURE_MINOR_HUGETLBFS,
		run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(2)
			alias := r.Alias()
			u.Watch(r.Range, minor)
			u.Continue(r.Pages(0, 1), 0).Failed(EFAULT) // nothing in the file
			p.Puts(alias.At(0), 'a')
			if !c.Memory.Shared() {
				// A private mapping maps the file's page too.
				u.Continue(r.Pages(0, 1), 0)
				return
			}
			t := p.NewThread().Load(r.At(0)).Blocked()
			u.WantFault(r.At(0), minorFault)
			u.Continue(r.Pages(0, 1), uapi.UFFDIO_CONTINUE_MODE_DONTWAKE).Is(OK, int64(r.Page()))
			t.StillBlocked()
			u.Wake(r.Pages(0, 1)).Err(OK)
			t.Value('a')
			u.Continue(r.Pages(0, 1), 0).Failed(EEXIST)
			// A write fault says so.
			p.Puts(alias.At(1), 'b')
			t = p.NewThread().Store(r.At(1), 'c').Blocked()
			u.WantFault(r.At(1), minorFault|writeFault)
			u.Continue(r.Pages(1, 1), 0).Is(OK, int64(r.Page()))
			t.Value(0)
			p.Sees(alias.At(1), 'c')
		}},
	{Name: "continue/any-mode", Rows: []string{"B.10.19"}, Memory: shared, Features: uapi.UFFD_FEATURE_MINOR_SHMEM, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		p.Puts(r.Alias().Start, 'a')
		u.Watch(r.Range, missing)
		u.Continue(r.Range, 0).Is(OK, int64(r.Page()))
		p.Sees(r.Start, 'a')
	}},
	{Name: "continue/protected", Rows: []string{"B.10.19", "B.2.13", "D.minor-wp"}, Memory: shared,
		Features: uapi.UFFD_FEATURE_MINOR_SHMEM | uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM | uapi.UFFD_FEATURE_WP_UNPOPULATED, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			alias := r.Alias()
			p.Puts(alias.Start, 'a')
			u.Watch(r.Range, minor)
			u.Continue(r.Range, uapi.UFFDIO_CONTINUE_MODE_WP).Failed(EINVAL)
			u.Watch(r.Range, minor|wp)
			u.Continue(r.Range, uapi.UFFDIO_CONTINUE_MODE_WP).Is(OK, int64(r.Page()))
			r.WantProtected(0, true)
			p.Sees(r.Start, 'a')
			t := p.NewThread().Store(r.Start, 'b').Blocked()
			u.WantFault(r.Start, wpFault)
			u.Protect(r.Range, 0).Err(OK)
			t.Value(0)
			p.Sees(alias.Start, 'b')
		}},
	{Name: "continue/minor-only-allocates", Rows: []string{"B.12.11"}, Memory: files, Features: uapi.UFFD_FEATURE_MINOR_SHMEM, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, minor)
		p.Sees(r.Start, 0) // in no file: an ordinary page
		u.Quiet()
	}},
	{Name: "continue/missing-only-maps", Rows: []string{"B.12.12"}, Memory: shared, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		p.Puts(r.Alias().Start, 'a')
		u.Watch(r.Range, missing)
		p.Sees(r.Start, 'a')
		u.Quiet()
	}},
}

var moveCases = []Case{
	{Name: "move/moves", Rows: []string{"B.10.M1", "D.move"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(3), p.Map(2)
		u.Watch(r.Range, missing)
		p.Puts(src.At(0), 'a')
		t := p.NewThread().Load(r.At(0)).Blocked()
		u.WantFault(r.At(0), readFault)
		u.Move(r.Pages(0, 1), src.At(0), uapi.UFFDIO_MOVE_MODE_DONTWAKE).Is(OK, int64(r.Page()))
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Value('a')
		p.Sees(src.At(0), 0)
		// A page of zeros that was only read moves too.
		u.Move(r.Pages(1, 1), src.At(0), 0).Is(OK, int64(r.Page()))
		p.Sees(r.At(1), 0)
	}},
	{Name: "move/within", Rows: []string{"B.10.M6"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		u.Move(r.Pages(0, 1), r.At(0), 0).Failed(EEXIST)
		u.Move(r.Pages(1, 1), r.At(0), 0).Is(OK, int64(r.Page()))
		p.Sees(r.At(1), 'a')
		t := p.NewThread().Load(r.At(0)).Blocked()
		u.WantFault(r.At(0), readFault)
		u.Zero(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
		t.Value(0)
	}},
	{Name: "move/holes", Rows: []string{"B.10.M4"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(3), p.Map(3)
		n := int64(r.Page())
		u.Watch(r.Range, missing)
		p.Puts(src.At(0), 'a')
		p.Puts(src.At(2), 'c')
		u.Move(r.Pages(1, 1), src.At(1), 0).Failed(ENOENT)
		u.Move(r.Range, src.At(0), 0).Is(EAGAIN, n)
		u.Move(r.Pages(1, 2), src.At(1), uapi.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES).Is(OK, 2*n)
		p.Sees(r.At(0), 'a')
		p.Sees(r.At(2), 'c')
		p.NewThread().Load(r.At(1)).Blocked() // still missing
	}},
	{Name: "move/destination-there", Rows: []string{"B.10.M4"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(2), p.Map(2)
		u.Watch(r.Range, missing)
		p.Puts(src.At(0), 'a')
		p.Puts(src.At(1), 'b')
		u.Zero(r.Pages(1, 1), 0).Is(OK, int64(r.Page()))
		u.Move(r.Pages(1, 1), src.At(1), 0).Failed(EEXIST)
		u.Move(r.Range, src.At(0), 0).Is(EAGAIN, int64(r.Page()))
		p.Sees(src.At(1), 'b')
	}},
	{Name: "move/checks", Rows: []string{"B.10.M1", "B.10.M2", "B.10.M3"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(2), p.Map(2)
		u.Watch(r.Range, missing)
		p.Puts(src.At(0), 'a')
		u.Move(r.Pages(0, 1), src.At(0)+1, 0).Refused(EINVAL)
		u.Move(r.Pages(0, 1), 1<<63, 0).Refused(EINVAL)
		u.Move(r.Pages(0, 1), src.End, 0).Failed(ENOENT)
		u.Move(mem.MakeRange(r.End, r.Page()), src.At(0), 0).Failed(ENOENT)
		u.Move(r.Pages(0, 2), src.At(1), 0).Failed(EINVAL) // past the source
		u.Move(mem.Range{Start: r.At(1), End: r.At(3)}, src.At(0), 0).Failed(EINVAL)
		dst := p.Map(1)
		u.Move(dst.Range, src.At(0), 0).Failed(EINVAL) // not registered
		p.Do(Mprotect, src.Start, src.Len(), ProtRead)
		u.Move(r.Pages(0, 1), src.At(0), 0).Failed(EINVAL)
		p.Do(Mprotect, src.Start, src.Len(), ProtRead|ProtWrite)
		p.Do(Mlock, src.Start, src.Len())
		u.Move(r.Pages(0, 1), src.At(0), 0).Failed(EINVAL)
		p.Do(Munlock, src.Start, src.Len())
		u.Move(r.Pages(0, 1), src.At(0), 0).Is(OK, int64(r.Page()))
	}},
	{Name: "move/locked", Rows: []string{"B.10.M3"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		// Locked pages may go where there are only such.
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(1), p.Map(1)
		p.Puts(src.Start, 'a')
		p.Do(Mlock2, src.Start, src.Len(), MlockOnFault)
		p.Do(Mlock2, r.Start, r.Len(), MlockOnFault)
		u.Watch(r.Range, missing)
		u.Move(r.Range, src.Start, 0).Is(OK, int64(r.Page()))
		p.Sees(r.Start, 'a')
		p.Sees(src.Start, 0)
	}},
	{Name: "move/unsuitable", Rows: []string{"B.10.M3"}, Memory: files, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(1), p.Map(1)
		u.Watch(r.Range, missing)
		p.Puts(src.Start, 'a')
		u.Move(r.Range, src.Start, 0).Failed(EINVAL)
		p.Sees(src.Start, 'a')
	}},
	{Name: "move/shared-after-fork", Rows: []string{"B.10.M5"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(1), p.Map(1)
		u.Watch(r.Range, missing)
		p.Puts(src.Start, 'a')
		child := p.Fork()
		u.Move(r.Range, src.Start, 0).Failed(EBUSY)
		child.Kill()
		u.Move(r.Range, src.Start, 0).Failed(EBUSY)
		p.Puts(src.Start, 'b') // makes it the process's own once more
		u.Move(r.Range, src.Start, 0).Is(OK, int64(r.Page()))
		p.Sees(r.Start, 'b')
	}},
	{Name: "move/destination-only-protected", Rows: []string{"B.10.M6"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(1), p.Map(1)
		u.Watch(r.Range, wp)
		p.Puts(src.Start, 'a')
		u.Move(r.Range, src.Start, 0).Is(OK, int64(r.Page()))
		p.Sees(r.Start, 'a')
	}},
	{Name: "move/another-process", Rows: []string{"B.10.M1", "C.24", "C.29"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, src := p.Map(1), p.Map(1)
		u.Watch(r.Range, missing)
		p.Puts(src.Start, 'a')
		p.Fork().UFFDOf(u).Move(r.Range, src.Start, 0).Refused(EINVAL)
		c.Process().Take(u).Move(r.Range, src.Start, 0).Refused(EINVAL)
	}},
}

// UFFDOf returns a descriptor that p has inherited.
func (p *Proc) UFFDOf(u *UFFD) *UFFD { return &UFFD{th: p.Thread, fd: u.fd} }
