// SPDX-License-Identifier: Apache-2.0

// Package workloadtest has the tests that run the programs of internal/workload
// under faultline run, with the kernel's call.
package workloadtest
