// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package conformance

import (
	"errors"

	"github.com/faultline-go/faultline/conformance/internal/puppet"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// hosted is the running kernel as programs see it that a host runs.
type hosted struct {
	*kernel
	host    Host
	nursery *puppet.Nursery // nil until there is one
}

// Hosted returns the kernel as h shows it to programs.
func Hosted(h Host) (Backend, error) {
	k, err := newKernel()
	if err != nil {
		return nil, err
	}
	b := &hosted{kernel: k, host: h}
	k.start = b.bear
	return b, nil
}

func (b *hosted) Name() string { return b.host.Name() }

// Excuse is what a suite asks for.
func (b *hosted) Excuse(title string) string { return b.host.Excuse(title) }

func (b *hosted) Features() (uapi.Features, error) { return featuresOf(b) }

// bear starts a puppet. A host may have ended all of its programs, for what
// the case before has done: then there is a new one.
func (b *hosted) bear() (*puppet.Process, error) {
	if b.nursery != nil && !b.nursery.Alive() {
		_ = b.nursery.Close() // it is dead
		b.nursery = nil
	}
	if b.nursery == nil {
		n, err := puppet.StartNursery(b.host.Start, b.sees)
		if err != nil {
			return nil, err
		}
		b.nursery = n
	}
	return b.nursery.Start()
}

func (b *hosted) sees(tid int) (puppet.State, bool) {
	s, held := b.host.State(tid)
	return puppet.State(s), held
}

func (b *hosted) Close() error {
	var err error
	if b.nursery != nil {
		err = b.nursery.Close()
	}
	return errors.Join(err, b.host.Close(), b.kernel.Close())
}
