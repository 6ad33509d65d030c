// SPDX-License-Identifier: Apache-2.0

package file

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/disk"
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

// openSmall has a stage of 64 KiB, so that most pages are in the file.
func openSmall(t testing.TB, c store.Codec, maxBytes int64) store.Store {
	f, dir, err := disk.OpenTemp(tempDirs())
	if err != nil {
		t.Fatal(err)
	}
	s, err := newStore(f, "file in "+dir, Options{Codec: c, MaxBytes: maxBytes}, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) { storetest.Run(t, open) }

func TestStoreSmallStage(t *testing.T) { storetest.Run(t, openSmall) }

func BenchmarkStore(b *testing.B) { storetest.Bench(b, open) }
