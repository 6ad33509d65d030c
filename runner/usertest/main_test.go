// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package usertest

import (
	"testing"

	"github.com/faultline-go/faultline/runner/internal/runtest"
)

func TestMain(m *testing.M) { runtest.Main(m) }
