// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
	memstore "github.com/faultline-go/faultline/store/mem"
)

// A bubble's clock stands still while a goroutine waits for a sync.Mutex, whose
// holder must therefore not wait for the clock.
func init() {
	lockPause = func(time.Duration) { runtime.Gosched() }
	newBell = func() bell { return make(testBell, 1) }
}

// testBell is a bell in whose Wait a bubble's clock goes on.
type testBell chan struct{}

func (b testBell) Ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

func (b testBell) Wait(d time.Duration) bool {
	if d < 0 {
		<-b
		return true
	}
	select {
	case <-b:
		return true
	case <-time.After(d):
		return false
	}
}

// testStore is a store whose device can be slow, full or wrong.
type testStore struct {
	store.Store
	mu      sync.Mutex
	slow    bool   // TryGet cannot
	hold    *gate  // holds the next Put
	onTry   func() // called once by TryGet on a corrupt page
	stall   chan struct{}
	getErr  error
	room    int  // pages that Put still takes, if not negative
	zeros   bool // pages of zeros take none
	most    int  // live pages that it holds, if positive
	puts    int  // calls of Put
	tried   int  // calls of TryGet
	gets    int  // calls of Get
	corrupt map[store.Ref]bool
	inGet   map[store.Ref]int
	broken  []string // what the pager must not do to a store
}

func (s *testStore) set(f func(*testStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *testStore) Put(pages [][]byte, refs []store.Ref) (int, error) {
	s.mu.Lock()
	s.puts++
	if g := s.hold; g != nil {
		s.hold = nil
		s.mu.Unlock()
		close(g.arrived)
		<-g.open
		s.mu.Lock()
	}
	n := len(pages)
	if s.room >= 0 {
		for n = 0; n < len(pages); n++ {
			if s.zeros && bytes.Equal(pages[n], zeroPage) {
				continue
			}
			if s.room == 0 {
				break
			}
			s.room--
		}
	}
	if s.most > 0 {
		n = max(0, min(n, s.most-int(s.Store.Stats().Live)))
	}
	s.mu.Unlock()
	done, err := s.Store.Put(pages[:n], refs)
	if err == nil && n < len(pages) {
		err = &store.Error{Store: "test", Op: "put", Off: -1, Err: store.ErrFull, Retry: true}
	}
	return done, err
}

func (s *testStore) TryGet(ref store.Ref, dst []byte) (bool, error) {
	s.mu.Lock()
	slow, bad := s.slow && !ref.Inline(), s.corrupt[ref]
	s.tried++
	hook := s.onTry
	if bad {
		s.onTry = nil
	}
	s.mu.Unlock()
	switch {
	case bad:
		if hook != nil {
			hook()
		}
		return false, &store.Error{Store: "test", Op: "get", Ref: ref, Off: -1, Err: store.ErrCorrupt}
	case slow:
		return false, nil
	}
	return s.Store.TryGet(ref, dst)
}

func (s *testStore) Get(ctx context.Context, ref store.Ref, dst []byte) error {
	s.mu.Lock()
	s.gets++
	s.inGet[ref]++
	stall, err := s.stall, s.getErr
	s.mu.Unlock()
	defer s.set(func(s *testStore) { s.inGet[ref]-- })
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return &store.Error{Store: "test", Op: "get", Ref: ref, Off: -1, Err: ctx.Err()}
		}
	}
	if err != nil {
		return err
	}
	return s.Store.Get(ctx, ref, dst)
}

func (s *testStore) Free(ref store.Ref) {
	s.mu.Lock()
	if s.inGet[ref] > 0 {
		s.broken = append(s.broken, fmt.Sprintf("Free of %v while a Get of it is under way", ref))
	}
	s.mu.Unlock()
	s.Store.Free(ref)
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) count(s string) int { return strings.Count(l.String(), s) }

// rig is a pager over a world.
type rig struct {
	*testing.T
	*world
	p     *Pager
	st    *testStore
	log   *logBuffer
	spans []*Space
	lossy bool // errors in the log are expected
}

// base is where the tests map their memory.
const base = mem.Addr(0x10000000)

func pages(first, n int) mem.Range {
	return mem.MakeRange(base+mem.Addr(first*mem.PageSize), uint64(n)*mem.PageSize)
}

func page(i int) mem.Page { return base.Page() + mem.Page(i) }

// sim runs f in a bubble over a pager of the smallest limit, and then checks
// that nothing is left behind.
func simulate(t *testing.T, cfg Config, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { simulateNow(t, cfg, f) })
}

func simulateNow(t *testing.T, cfg Config, f func(r *rig)) {
	m, err := memstore.Open(memstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, world: newWorld(t), log: &logBuffer{}}
	r.st = &testStore{Store: m, room: -1, corrupt: make(map[store.Ref]bool), inGet: make(map[store.Ref]int)}
	cfg.Store = r.st
	cfg.Log = slog.New(slog.NewTextHandler(r.log, nil))
	if cfg.Limit == 0 {
		cfg.Limit = MinLimit
	}
	if r.p, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	// A test that fails midway must not leave goroutines in its bubble.
	defer func() {
		r.world.mu.Lock()
		for _, k := range r.sims {
			k.stuck, k.changing = false, false
		}
		for _, g := range r.held {
			g.release()
		}
		r.world.mu.Unlock()
		r.p.Close()
		for _, k := range r.sims {
			_ = k.Close() // the pager has closed those that it served
			k.end()
		}
		r.st.Close()
	}()
	f(r)
	r.finish()
}

// attach serves k with the regions it has.
func (r *rig) attach(k *sim, change ...func(*SpaceConfig)) *Space {
	cfg := SpaceConfig{Name: "sim", Mover: k.newMover, Mapping: k.mapping, Present: k.presentIn}
	for _, f := range change {
		f(&cfg)
	}
	s := r.p.Attach(k, cfg)
	for _, v := range k.areas {
		if err := s.Add(v.Range, v.wipe); err != nil {
			r.Fatal(err)
		}
	}
	r.spans = append(r.spans, s)
	return s
}

// start maps n pages and serves them.
func (r *rig) start(n int, change ...func(*SpaceConfig)) (*sim, *Space) {
	k := r.space()
	k.mmap(pages(0, n))
	return k, r.attach(k, change...)
}

// finish closes everything and checks the books.
func (r *rig) finish() {
	r.Helper()
	r.world.mu.Lock()
	for phase := range r.gates {
		r.Errorf("nothing came to phase %q", phase)
	}
	r.world.mu.Unlock()
	r.p.Close()
	if n := r.p.resident.Load(); n != 0 {
		r.Errorf("%d pages resident after Close", n)
	}
	if n := r.p.overflow.len(); n != 0 {
		r.Errorf("%d pages held after Close", n)
	}
	st := r.st.Stats()
	if st.Live != 0 || st.Misused != 0 {
		r.Errorf("store after Close: %d pages live, %d calls with dead refs", st.Live, st.Misused)
	}
	for _, s := range r.st.broken {
		r.Error(s)
	}
	if !r.lossy && (r.log.count("level=ERROR") > 0 || r.p.stat.lost.Load() > 0) {
		r.Errorf("%d pages lost; log:\n%s", r.p.stat.lost.Load(), r.log)
	}
	if err := r.st.Close(); err != nil {
		r.Error(err)
	}
}

// pattern returns a page that is like no other, and half compressible.
func pattern(n uint64) []byte {
	b := make([]byte, mem.PageSize)
	rng := rand.New(rand.NewPCG(n, 7))
	for i := 0; i < len(b)/2; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	binary.LittleEndian.PutUint64(b[mem.PageSize-8:], n)
	return b
}

var zeroPage = make([]byte, mem.PageSize)

func describe(b []byte) string {
	if bytes.Equal(b, zeroPage) {
		return "zeros"
	}
	n := binary.LittleEndian.Uint64(b[mem.PageSize-8:])
	if bytes.Equal(b, pattern(n)) {
		return fmt.Sprintf("pattern %d", n)
	}
	return "garbage"
}

func (r *rig) wantPage(k *sim, pg mem.Page, want []byte) {
	r.Helper()
	got, err := k.load(1, pg)
	switch {
	case err != nil:
		r.Fatalf("page %v: %v, want %s", pg.Addr(), err, describe(want))
	case !bytes.Equal(got, want):
		r.Fatalf("page %v holds %s, want %s", pg.Addr(), describe(got), describe(want))
	}
}

func (r *rig) put(k *sim, i int, n uint64) {
	r.Helper()
	if err := k.store(1, page(i), pattern(n)); err != nil {
		r.Fatalf("storing page %d: %v", i, err)
	}
}

// fill writes pattern i+salt to pages [first, first+n).
func (r *rig) fill(k *sim, first, n int, salt uint64) {
	r.Helper()
	for i := first; i < first+n; i++ {
		r.put(k, i, uint64(i)+salt)
	}
}

// pageState returns the state of page i in the table.
func (s *Space) pageState(i int) state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.stateOf(page(i))
}

// firstIn returns the first page of [0, n) in state st.
func (r *rig) firstIn(s *Space, n int, st state) int {
	r.Helper()
	for i := range n {
		if s.pageState(i) == st {
			return i
		}
	}
	r.Fatalf("no page is %v", st)
	return -1
}

// settled waits until nobody has anything to do but to wait for time.
func settled() { synctest.Wait() }

// wantCounts checks the account of resident pages against the world.
func (r *rig) wantCounts() {
	r.Helper()
	settled()
	n := 0
	for _, k := range r.sims {
		n += k.present()
	}
	if got := int(r.p.resident.Load()); got != n {
		r.Errorf("%d pages are accounted as resident, %d are", got, n)
	}
}

// run starts f and returns a channel that is closed when it is through.
func run(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// wantBound checks that there were never more pages than the limit allows,
// with the overshoot, and a batch that is in the window as well.
func (r *rig) wantBound() {
	r.Helper()
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	if bound := int(r.p.limit) + overshoot + 2*r.p.batch; r.most > bound {
		r.Errorf("%d pages were present at a time, bound %d", r.most, bound)
	}
}
