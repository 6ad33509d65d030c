// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"context"
	"fmt"
	"sync"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// overflow keeps pages that have left their space when the store would not
// take them: at most a batch, since nothing more leaves before these are in
// the store. They are outside like others, under refs of our own making, which
// they keep when the store has taken them in the end.
type overflow struct {
	mu    sync.Mutex
	pages map[uint64]*heldPage // protected by mu
	next  uint64               // protected by mu
}

type heldPage struct {
	bytes  []byte    // immutable; nil once the store has the page
	stored store.Ref // where, if bytes is nil
	refs   int
}

// heldBit marks the place of a page that we hold ourselves. No store has
// offsets of that size.
const heldBit = 1 << 63

func newOverflow() *overflow { return &overflow{pages: make(map[uint64]*heldPage)} }

func isHeld(ref store.Ref) bool { return ref.Kind() == store.KindRaw && ref.Loc()&heldBit != 0 }

// hold keeps a copy of a page.
func (o *overflow) hold(page []byte) store.Ref {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next++
	o.pages[o.next] = &heldPage{bytes: append([]byte(nil), page...), refs: 1}
	return store.MakeRef(store.KindRaw, heldBit|o.next, mem.PageSize, 0)
}

// get copies a page to dst, or says where in the store it is by now.
func (o *overflow) get(ref store.Ref, dst []byte) (stored store.Ref, here bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.pages[ref.Loc()&^heldBit]
	switch {
	case h == nil:
		return store.Ref{}, false, fmt.Errorf("held page %#x: %w", ref.Loc()&^heldBit, store.ErrCorrupt)
	case h.bytes == nil:
		return h.stored, false, nil
	}
	copy(dst, h.bytes)
	return store.Ref{}, true, nil
}

// count changes the number of references to a page. It returns the page if
// that was the last one.
func (o *overflow) count(ref store.Ref, by int) *heldPage {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := ref.Loc() &^ heldBit
	h := o.pages[id]
	if h == nil {
		return nil
	}
	if h.refs += by; h.refs > 0 {
		return nil
	}
	delete(o.pages, id)
	return h
}

// held lists the pages that the store has not taken yet, with a reference to
// each.
func (o *overflow) held() (refs []store.Ref, pages [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, h := range o.pages {
		if h.bytes != nil {
			h.refs++
			refs = append(refs, store.MakeRef(store.KindRaw, heldBit|id, mem.PageSize, 0))
			pages = append(pages, h.bytes)
		}
	}
	return refs, pages
}

// settled notes that the store has taken a page.
func (o *overflow) settled(ref, stored store.Ref) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.pages[ref.Loc()&^heldBit]
	h.bytes, h.stored = nil, stored
}

// flushHeld gives the store the pages that we hold for it. It reports whether
// it took all of them.
func (p *Pager) flushHeld() bool {
	held, pages := p.overflow.held()
	refs := make([]store.Ref, len(pages))
	n := 0
	if len(pages) > 0 {
		n, _ = p.cfg.Store.Put(pages, refs) // why not all is known to the user
	}
	for i, ref := range held {
		if i < n {
			p.overflow.settled(ref, refs[i])
		}
		p.free(ref)
	}
	return n == len(pages)
}

func (o *overflow) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pages)
}

// bring has the bytes of a page come nearer, which fetchNow will read soon.
func (p *Pager) bring(ref store.Ref) {
	if p.nearer != nil && !isHeld(ref) {
		p.nearer.Bring(ref)
	}
}

// fetchNow reads a page if that takes no waiting.
func (p *Pager) fetchNow(ref store.Ref, dst []byte) (bool, error) {
	if isHeld(ref) {
		stored, here, err := p.overflow.get(ref, dst)
		if here || err != nil {
			return here, err
		}
		ref = stored
	}
	return p.cfg.Store.TryGet(ref, dst)
}

// fetchWait reads a page, waiting for the store's device if need be.
func (p *Pager) fetchWait(ctx context.Context, ref store.Ref, dst []byte) error {
	if isHeld(ref) {
		stored, here, err := p.overflow.get(ref, dst)
		if here || err != nil {
			return err
		}
		ref = stored
	}
	return p.cfg.Store.Get(ctx, ref, dst)
}

// free gives back one reference to a page.
func (p *Pager) free(ref store.Ref) {
	if !isHeld(ref) {
		p.cfg.Store.Free(ref)
	} else if h := p.overflow.count(ref, -1); h != nil && h.bytes == nil {
		p.cfg.Store.Free(h.stored)
	}
}

// share adds a reference to a page.
func (p *Pager) share(ref store.Ref) {
	if isHeld(ref) {
		p.overflow.count(ref, +1)
		return
	}
	p.cfg.Store.Share(ref)
}

// fetchAny reads a page, held or stored, waiting if need be.
func (p *Pager) fetchAny(ref store.Ref, dst []byte) error {
	if ok, err := p.fetchNow(ref, dst); ok || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Patience)
	defer cancel()
	return p.fetchWait(ctx, ref, dst)
}
