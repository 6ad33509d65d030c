// SPDX-License-Identifier: Apache-2.0

package mem

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, c store.Codec, maxBytes int64) store.Store {
	s, err := Open(Options{Codec: c, MaxBytes: maxBytes})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) { storetest.Run(t, open) }

func BenchmarkStore(b *testing.B) { storetest.Bench(b, open) }
