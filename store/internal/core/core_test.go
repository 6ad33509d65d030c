// SPDX-License-Identifier: Apache-2.0

package core

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/faultline-go/faultline/store"
)

// H8: Shut returns after the last call, and lets no new one begin.
func TestShutWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Base
		if err := b.Init("test", store.LZ4); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := b.Enter("get"); err != nil {
				t.Fatal(err)
			}
		}
		var done atomic.Bool
		go func() {
			if !b.Shut() {
				t.Error("the first Shut is not the first")
			}
			done.Store(true)
		}()
		synctest.Wait()
		if err := b.Enter("get"); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Enter during Shut: %v", err)
		}
		b.Leave()
		synctest.Wait()
		if done.Load() {
			t.Error("Shut returns while a call is under way")
		}
		b.Leave()
		synctest.Wait()
		if !done.Load() {
			t.Error("Shut does not return after the last call")
		}
		if err := b.Enter("get"); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Enter after Shut: %v", err)
		}
		if b.Shut() {
			t.Error("the second Shut takes itself for the first")
		}
	})
}

func TestShutOfIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Base
		if err := b.Init("test", store.None); err != nil {
			t.Fatal(err)
		}
		if !b.Shut() || b.Shut() {
			t.Error("Shut does not know who was first")
		}
	})
}

func TestUnknownCodec(t *testing.T) {
	var b Base
	if err := b.Init("test", 99); err == nil {
		t.Error("an unknown codec is taken")
	}
}
