// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const wpAsync = uapi.UFFD_FEATURE_WP_ASYNC

// scan is a PAGEMAP_SCAN for written pages.
func (p *Proc) scan(r mem.Range, flags uint64) ([]mem.Range, Errno) {
	const most = 16
	fd := p.Do(OpenPagemap)
	vec := p.scratch(most * 24)
	a := p.put(words(96, flags, uint64(r.Start), uint64(r.End), 0, uint64(vec), most, 0,
		0, PageIsWritten, 0, PageIsWritten))
	res := p.Call(Ioctl, fd, PagemapScan, a)
	p.Do(Close, fd)
	var out []mem.Range
	if res.Errno == OK {
		for b := p.get(vec, int(res.Value)*24); len(b) > 0; b = b[24:] {
			out = append(out, mem.Range{Start: mem.Addr(le64(b)), End: mem.Addr(le64(b[8:]))})
		}
	}
	return out, res.Errno
}

// wantWritten checks which pages a scan reports.
func (r *Region) wantWritten(flags uint64, want ...mem.Range) {
	got, errno := r.proc.scan(r.Range, flags)
	Is(r.c, "PAGEMAP_SCAN", errno, OK)
	same := len(got) == len(want)
	for i := 0; same && i < len(got); i++ {
		same = got[i] == want[i]
	}
	if !same {
		r.c.Failf("PAGEMAP_SCAN: written are %v, want %v", got, want)
	}
}

var asyncCases = []Case{
	{Name: "async/no-message", Rows: []string{"B.14.1", "B.2.15", "C.32"}, Memory: all, Features: wpAsync, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(wpAsync)
		r := p.Map(2)
		p.Puts(r.At(0), 'a')
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		r.WantProtected(0, true)
		p.Puts(r.At(0), 'b')
		p.Puts(r.At(1), 'b') // unpopulated: protected all the same
		r.WantProtected(0, false)
		u.Quiet()
	}},
	{Name: "async/with-missing", Rows: []string{"B.14.2"}, Memory: all, Features: wpAsync, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(wpAsync)
		r := p.Map(2)
		u.Watch(r.Range, missing|wp)
		u.Copy(r.Pages(0, 1), p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_WP).Is(OK, int64(r.Page()))
		p.Puts(r.At(0), 'b')
		u.Quiet()
		p.NewThread().Load(r.At(1)).Blocked()
		u.WantFault(r.At(1), readFault)
	}},
	{Name: "async/scan", Rows: []string{"B.14.3"}, Memory: all, Features: wpAsync, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(wpAsync)
		r := p.Map(3)
		u.Watch(r.Range, wp)
		// Before the first protection everything counts as written, but huge
		// pages that are not there.
		if c.Memory.Huge() {
			r.wantWritten(ScanWPMatching | ScanCheckWPAsync)
		} else {
			r.wantWritten(ScanWPMatching|ScanCheckWPAsync, r.Range)
		}
		r.wantWritten(0)
		p.Puts(r.At(1), 'a')
		r.wantWritten(0, r.Pages(1, 1))
		r.wantWritten(ScanWPMatching|ScanCheckWPAsync, r.Pages(1, 1))
		r.wantWritten(ScanWPMatching)
		p.Puts(r.At(0), 'a')
		p.Puts(r.At(1), 'b')
		r.wantWritten(0, r.Pages(0, 2))
	}},
	{Name: "async/scan-elsewhere", Rows: []string{"B.14.4"}, Memory: anon, Features: wpAsync, run: func(c *C) {
		p := c.Process()
		r := p.Map(2)
		p.Puts(r.At(0), 'a')
		p.Puts(r.At(1), 'a')
		r.wantWritten(0, r.Range)
		r.wantWritten(ScanWPMatching)
		_, errno := p.scan(r.Range, ScanWPMatching|ScanCheckWPAsync)
		Is(c, "PAGEMAP_SCAN with CHECK_WPASYNC", errno, EPERM)
		// A synchronous registration is no asynchronous one.
		u := p.UFFD(0)
		u.Watch(r.Range, wp)
		_, errno = p.scan(r.Range, ScanWPMatching|ScanCheckWPAsync)
		Is(c, "PAGEMAP_SCAN with CHECK_WPASYNC", errno, EPERM)
	}},
}
