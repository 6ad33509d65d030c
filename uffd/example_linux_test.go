// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"fmt"
	"log"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Serve the missing pages of another process, whose descriptor number and
// memory are known from elsewhere, until it is gone.
func Example() {
	const pid, number = 4242, 7
	served := mem.MakeRange(0x7f00_0000_0000, 1<<20)

	fd, err := uffd.FromProcess(pid, number)
	if err != nil {
		log.Fatal(err)
	}
	defer fd.Close()
	if err := fd.Handshake(uapi.UFFD_FEATURE_EVENT_UNMAP); err != nil {
		log.Fatal(err)
	}
	_, errno := fd.Register(served, uapi.UFFDIO_REGISTER_MODE_MISSING)
	if err := uffd.Check("UFFDIO_REGISTER", served, 0, errno); err != nil {
		log.Fatal(err)
	}

	content := make([]byte, mem.PageSize)
	msgs := make([]uapi.Msg, 64)
	for {
		if _, errno := fd.Wait(-1, -1); errno != 0 {
			log.Fatal(errno)
		}
		n, errno := fd.Read(msgs)
		if errno == syscall.EAGAIN {
			continue
		}
		for i := range msgs[:n] {
			addr, _, _ := msgs[i].Fault()
			if msgs[i].Event != uapi.UFFD_EVENT_PAGEFAULT {
				fmt.Println(msgs[i].Typed())
				continue
			}
			page := mem.MakeRange(addr.Down(), mem.PageSize)
			done, errno := fd.Copy(page.Start, content, 0)
			switch uffd.OutcomeOf(errno) {
			case uffd.Raced, uffd.Deferred:
				// The thread tries again, and sends a new message if it must.
				fd.Wake(page)
			case uffd.Gone:
				return
			case uffd.Failed:
				log.Print(uffd.Check("UFFDIO_COPY", page, done, errno))
				fd.Poison(page, 0)
			}
		}
	}
}
