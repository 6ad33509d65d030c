// SPDX-License-Identifier: Apache-2.0

// Package usertest has the tests of faultline run with the engine in software, where
// the kernel's call is not used.
package usertest
