// SPDX-License-Identifier: Apache-2.0

// Package realtest has the tests that run real programs, as Debian packages
// them, under faultline run: by themselves, with a client, and on a terminal.
package realtest
