// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

func TestMain(m *testing.M) {
	testutil.DefaultSignals()
	os.Exit(m.Run())
}

// TestStartFails: the error says that there is no such program.
func TestStartFails(t *testing.T) {
	if _, err := Start(Options{Path: "/nowhere", Argv: []string{"x"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
