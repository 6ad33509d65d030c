// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/mem"
)

// findProvided says what a program's call comes to, with faultline provide and
// without.
//
// A filter's RET_TRAP outranks what other filters answer, unless they kill; and
// none of them does, or we would not have come through our own call.
func findProvided(p *probe) finding {
	if _, refused := p.refusedCall("seccomp"); refused {
		return blocked("seccomp-install")
	}
	if p.trap() != 0 {
		return no("use a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no RET_TRAP action")
	}
	const way = "by a filter's RET_TRAP, whose signal is taken at the ptrace stop"
	call := findSyscall(p)
	if call.status == OK {
		return ok("%s; the kernel's own call %s, too", way, call.found)
	}
	return ok("%s; the kernel's own: %s", way, call.found)
}

// usualMaps is the kernel's own default of vm.max_map_count.
const usualMaps = 65530

// findMaxMapCount warns where less than usual is allowed.
func findMaxMapCount(p *probe) finding {
	text := p.read("proc/sys/vm/max_map_count")
	n, err := strconv.ParseUint(text, 10, 40)
	if err != nil {
		return warn("mount -t proc proc /proc", "could not tell: vm.max_map_count is %q", text)
	}
	found := fmt.Sprintf("vm.max_map_count=%d: enough for %s with every other page missing", n, size.Format(n*mem.PageSize))
	if n < usualMaps {
		return warn(fmt.Sprintf("sysctl -w vm.max_map_count=%d", 1<<20), "%s", found)
	}
	return ok("%s", found)
}

// trapAction asks for the action that provide cannot do without.
func trapAction() unix.Errno { return seccompAction(unix.SECCOMP_RET_TRAP) }
