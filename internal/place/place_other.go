// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package place

// Thread does nothing where there is no kernel to place a thread by.
type Thread struct{}

// Self returns the calling thread.
func Self() *Thread { return &Thread{} }

// Close does nothing.
func (t *Thread) Close() {}

// Idle reports false.
func (t *Thread) Idle() bool { return false }

// Normal does nothing.
func (t *Thread) Normal() {}

// Pin does nothing.
func (t *Thread) Pin(int) {}

// CPU returns -1.
func (t *Thread) CPU() int { return -1 }

// CPUOf returns -1.
func (t *Thread) CPUOf(_, _ int) int { return -1 }

// Avoid reports false.
func (t *Thread) Avoid(int) bool { return false }

// Clear does nothing.
func Clear(int) {}

// Yield does nothing.
func Yield() {}

// Urgent does nothing.
func Urgent() (restore func()) { return func() {} }

// UrgentThread does nothing.
func UrgentThread(int) {}

// Quiet does nothing.
func Quiet() {}
