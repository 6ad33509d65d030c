// SPDX-License-Identifier: Apache-2.0

// Package provided checks the system call that package provider gives to
// programs by the table of package conformance: the programs are the table's
// own, which know nothing of a provider.
package provided

// Name is how the backend is called.
const Name = "provided"
