// SPDX-License-Identifier: Apache-2.0

// Package arch has no code: its tests hold the rules by which the module is
// built, such as which package may import which.
package arch
