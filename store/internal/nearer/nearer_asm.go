// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

// Package nearer has bytes brought into the processor's caches before they
// are used.
package nearer

// Bring begins to bring the bytes of b into the nearest cache, and does not
// wait for them. It touches nothing: memory that is not mapped is no error.
//
//go:noescape
func Bring(b []byte)
