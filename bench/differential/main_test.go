// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/internal/testutil"
)

func TestRun(t *testing.T) {
	var b strings.Builder
	if _, err := run(t.Context(), &b, options{ops: 1, length: 1, a: "toaster", b: "kernel"}); err == nil {
		t.Error("a toaster was compared")
	}
	k, err := conformance.Kernel()
	if err == nil {
		_, err = k.Features()
	}
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	o := options{ops: 300, length: 50, seed: 5, a: "kernel", b: "kernel"}
	n, err := run(t.Context(), &b, o)
	if err != nil || n != 0 || !strings.Contains(b.String(), "300 operations") || !strings.Contains(b.String(), "seeds 5 to 10, 0 differences") {
		t.Errorf("%d, %v, %q", n, err, &b)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := run(ctx, &b, o); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
