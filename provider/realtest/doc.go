// SPDX-License-Identifier: Apache-2.0

// Package realtest has the tests that run real programs, as Debian packages
// them, under faultline provide: where a filter refuses the kernel's own call,
// as in a container, and without privilege.
package realtest
