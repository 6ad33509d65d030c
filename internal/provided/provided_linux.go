// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provided

import (
	"log/slog"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/vkernel"
)

// Backend returns the running kernel as package provider shows it to programs.
// The log, which may be nil, gets what ends a provider before its time.
func Backend(log *slog.Logger) (conformance.Backend, error) {
	return conformance.Hosted(&host{log: log})
}

// host is a provider, and another one when that has ended.
type host struct {
	log *slog.Logger
	p   *provider.Provider // nil until there is one
}

func (h *host) Name() string { return Name }

// Start implements [conformance.Host].
func (h *host) Start(path string, argv []string, files []uintptr) error {
	_ = h.Close() // the log has why it ended
	p, err := provider.Start(provider.Options{Path: path, Argv: argv, Env: []string{}, Files: files, Log: h.log})
	if err == nil {
		h.p = p
	}
	return err
}

// State implements [conformance.Host].
func (h *host) State(tid int) (conformance.State, bool) {
	switch h.p.State(tid) {
	case vkernel.InFault:
		return conformance.InFault, true
	case vkernel.InEvent:
		return conformance.InEvent, true
	case vkernel.InRead, vkernel.InPoll:
		return conformance.Asleep, true
	}
	return conformance.Running, false
}

// Excuse implements [conformance.Host].
func (h *host) Excuse(title string) string { return Excuse(title) }

// Close implements [conformance.Host].
func (h *host) Close() error {
	if h.p == nil {
		return nil
	}
	h.p.Kill()
	_, err := h.p.Wait()
	h.p = nil
	return err
}
