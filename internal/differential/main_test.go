// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails if a goroutine is left when all tests have passed.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
