// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"os"
	"os/signal"
	"syscall"
)

// DefaultSignals lets what the tests start find SIGHUP and SIGINT as they are
// by default, though the tests were started with them ignored, as by nohup(1)
// or in the background. A handler becomes the default again at exec; only
// these two keep the runtime from setting one by itself.
func DefaultSignals() {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}
