// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"maps"
	"slices"
)

// Backends returns how to open each backend, by name.
func Backends() map[string]func() (Backend, error) {
	return map[string]func() (Backend, error){
		"kernel":  Kernel,
		"vkernel": Model,
		"seed":    SeedModel,
	}
}

// BackendNames returns the names of Backends in order.
func BackendNames() []string { return slices.Sorted(maps.Keys(Backends())) }
