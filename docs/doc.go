// SPDX-License-Identifier: Apache-2.0

// Package docs has no code: its tests hold the documentation to what is true.
// The program in the manual page is compiled and run, links lead somewhere,
// pictures are well-formed, and tests that are named exist.
package docs
