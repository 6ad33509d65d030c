// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sysargs

// archTrials are of calls that older architectures alone have: none.
func archTrials(*needs) []trial { return nil }
