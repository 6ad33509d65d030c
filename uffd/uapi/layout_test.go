// SPDX-License-Identifier: Apache-2.0

package uapi_test

import (
	"testing"
	"unsafe"

	. "github.com/faultline-go/faultline/uffd/uapi"
)

// TestRequests pins spec B.1: each number is built here from its parts as
// ioctl(2) describes them, and the size part is that of the Go struct.
func TestRequests(t *testing.T) {
	const none, read, readWrite = 0, 2, 3
	for _, tc := range []struct {
		name    string
		request uint64
		dir     uint64
		nr      uint64
		size    uintptr
	}{
		{"UFFDIO_API", UFFDIO_API, readWrite, 0x3f, unsafe.Sizeof(API{})},
		{"UFFDIO_REGISTER", UFFDIO_REGISTER, readWrite, 0, unsafe.Sizeof(Register{})},
		{"UFFDIO_UNREGISTER", UFFDIO_UNREGISTER, read, 1, unsafe.Sizeof(Range{})},
		{"UFFDIO_WAKE", UFFDIO_WAKE, read, 2, unsafe.Sizeof(Range{})},
		{"UFFDIO_COPY", UFFDIO_COPY, readWrite, 3, unsafe.Sizeof(Copy{})},
		{"UFFDIO_ZEROPAGE", UFFDIO_ZEROPAGE, readWrite, 4, unsafe.Sizeof(Zeropage{})},
		{"UFFDIO_MOVE", UFFDIO_MOVE, readWrite, 5, unsafe.Sizeof(Move{})},
		{"UFFDIO_WRITEPROTECT", UFFDIO_WRITEPROTECT, readWrite, 6, unsafe.Sizeof(WriteProtect{})},
		{"UFFDIO_CONTINUE", UFFDIO_CONTINUE, readWrite, 7, unsafe.Sizeof(Continue{})},
		{"UFFDIO_POISON", UFFDIO_POISON, readWrite, 8, unsafe.Sizeof(Poison{})},
		{"USERFAULTFD_IOC_NEW", USERFAULTFD_IOC_NEW, none, 0, 0},
	} {
		want := tc.dir<<30 | uint64(tc.size)<<16 | 0xaa<<8 | tc.nr
		if tc.request != want {
			t.Errorf("%s = %#x, want %#x", tc.name, tc.request, want)
		}
		if tc.size == 0 {
			continue
		}
		if name, ok := RequestName(uint32(tc.request)); !ok || name != tc.name {
			t.Errorf("RequestName(%#x) = %q, %v, want %q", tc.request, name, ok, tc.name)
		}
	}
	if name, ok := RequestName(0x5401); ok {
		t.Errorf("RequestName of a terminal's ioctl = %q", name)
	}
}

// TestLayout pins the offset of every field.
func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		name      string
		got, want uintptr
	}{
		{"sizeof API", unsafe.Sizeof(API{}), 24},
		{"sizeof Register", unsafe.Sizeof(Register{}), 32},
		{"sizeof Range", unsafe.Sizeof(Range{}), 16},
		{"sizeof Copy", unsafe.Sizeof(Copy{}), 40},
		{"sizeof Zeropage", unsafe.Sizeof(Zeropage{}), 32},
		{"sizeof Move", unsafe.Sizeof(Move{}), 40},
		{"sizeof WriteProtect", unsafe.Sizeof(WriteProtect{}), 24},
		{"sizeof Continue", unsafe.Sizeof(Continue{}), 32},
		{"sizeof Poison", unsafe.Sizeof(Poison{}), 32},
		{"sizeof Msg", unsafe.Sizeof(Msg{}), MsgSize},
		{"API.API", unsafe.Offsetof(API{}.API), 0},
		{"API.Features", unsafe.Offsetof(API{}.Features), 8},
		{"API.Ioctls", unsafe.Offsetof(API{}.Ioctls), 16},
		{"Range.Start", unsafe.Offsetof(Range{}.Start), 0},
		{"Range.Len", unsafe.Offsetof(Range{}.Len), 8},
		{"Register.Range", unsafe.Offsetof(Register{}.Range), 0},
		{"Register.Mode", unsafe.Offsetof(Register{}.Mode), 16},
		{"Register.Ioctls", unsafe.Offsetof(Register{}.Ioctls), 24},
		{"Copy.Dst", unsafe.Offsetof(Copy{}.Dst), 0},
		{"Copy.Src", unsafe.Offsetof(Copy{}.Src), 8},
		{"Copy.Len", unsafe.Offsetof(Copy{}.Len), 16},
		{"Copy.Mode", unsafe.Offsetof(Copy{}.Mode), 24},
		{"Copy.Copy", unsafe.Offsetof(Copy{}.Copy), 32},
		{"Zeropage.Mode", unsafe.Offsetof(Zeropage{}.Mode), 16},
		{"Zeropage.Zeropage", unsafe.Offsetof(Zeropage{}.Zeropage), 24},
		{"Move.Dst", unsafe.Offsetof(Move{}.Dst), 0},
		{"Move.Src", unsafe.Offsetof(Move{}.Src), 8},
		{"Move.Len", unsafe.Offsetof(Move{}.Len), 16},
		{"Move.Mode", unsafe.Offsetof(Move{}.Mode), 24},
		{"Move.Move", unsafe.Offsetof(Move{}.Move), 32},
		{"WriteProtect.Mode", unsafe.Offsetof(WriteProtect{}.Mode), 16},
		{"Continue.Mode", unsafe.Offsetof(Continue{}.Mode), 16},
		{"Continue.Mapped", unsafe.Offsetof(Continue{}.Mapped), 24},
		{"Poison.Mode", unsafe.Offsetof(Poison{}.Mode), 16},
		{"Poison.Updated", unsafe.Offsetof(Poison{}.Updated), 24},
		{"Msg.Event", unsafe.Offsetof(Msg{}.Event), 0},
		{"Msg.Reserved", unsafe.Offsetof(Msg{}.Reserved), 1},
		{"Msg.Word", unsafe.Offsetof(Msg{}.Word), 8},
	} {
		if tc.got != tc.want {
			t.Errorf("%s = %d, want %d", tc.name, tc.got, tc.want)
		}
	}
}

// TestNumbers pins spec B.1 and B.2 as plain integers.
func TestNumbers(t *testing.T) {
	for _, tc := range []struct {
		name      string
		got, want uint64
	}{
		{"UFFD_API", UFFD_API, 0xaa},
		{"UFFD_USER_MODE_ONLY", UFFD_USER_MODE_ONLY, 1},
		{"SYS_USERFAULTFD_AMD64", SYS_USERFAULTFD_AMD64, 323},
		{"SYS_USERFAULTFD_ARM64", SYS_USERFAULTFD_ARM64, 282},
		{"UFFD_API_IOCTLS", uint64(UFFD_API_IOCTLS), 0x8000000000000003},
		{"UFFD_API_RANGE_IOCTLS", uint64(UFFD_API_RANGE_IOCTLS), 0x1fc},
		{"UFFD_API_FEATURES", uint64(UFFD_API_FEATURES), 0x1ffff},
		{"UFFD_EVENT_PAGEFAULT", uint64(UFFD_EVENT_PAGEFAULT), 0x12},
		{"UFFD_EVENT_FORK", uint64(UFFD_EVENT_FORK), 0x13},
		{"UFFD_EVENT_REMAP", uint64(UFFD_EVENT_REMAP), 0x14},
		{"UFFD_EVENT_REMOVE", uint64(UFFD_EVENT_REMOVE), 0x15},
		{"UFFD_EVENT_UNMAP", uint64(UFFD_EVENT_UNMAP), 0x16},
		{"FLAG_WRITE", uint64(UFFD_PAGEFAULT_FLAG_WRITE), 1},
		{"FLAG_WP", uint64(UFFD_PAGEFAULT_FLAG_WP), 2},
		{"FLAG_MINOR", uint64(UFFD_PAGEFAULT_FLAG_MINOR), 4},
		{"REGISTER_MODE_MISSING", uint64(UFFDIO_REGISTER_MODE_MISSING), 1},
		{"REGISTER_MODE_WP", uint64(UFFDIO_REGISTER_MODE_WP), 2},
		{"REGISTER_MODE_MINOR", uint64(UFFDIO_REGISTER_MODE_MINOR), 4},
		{"COPY_MODE_DONTWAKE", uint64(UFFDIO_COPY_MODE_DONTWAKE), 1},
		{"COPY_MODE_WP", uint64(UFFDIO_COPY_MODE_WP), 2},
		{"ZEROPAGE_MODE_DONTWAKE", uint64(UFFDIO_ZEROPAGE_MODE_DONTWAKE), 1},
		{"WRITEPROTECT_MODE_WP", uint64(UFFDIO_WRITEPROTECT_MODE_WP), 1},
		{"WRITEPROTECT_MODE_DONTWAKE", uint64(UFFDIO_WRITEPROTECT_MODE_DONTWAKE), 2},
		{"CONTINUE_MODE_DONTWAKE", uint64(UFFDIO_CONTINUE_MODE_DONTWAKE), 1},
		{"CONTINUE_MODE_WP", uint64(UFFDIO_CONTINUE_MODE_WP), 2},
		{"POISON_MODE_DONTWAKE", uint64(UFFDIO_POISON_MODE_DONTWAKE), 1},
		{"MOVE_MODE_DONTWAKE", uint64(UFFDIO_MOVE_MODE_DONTWAKE), 1},
		{"MOVE_MODE_ALLOW_SRC_HOLES", uint64(UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES), 2},
	} {
		if tc.got != tc.want {
			t.Errorf("%s = %#x, want %#x", tc.name, tc.got, tc.want)
		}
	}
	// Bit i of Ioctls is the request with number i.
	for _, tc := range []struct {
		bit     Ioctls
		request uint64
	}{
		{UFFDIO_BIT_API, UFFDIO_API},
		{UFFDIO_BIT_REGISTER, UFFDIO_REGISTER},
		{UFFDIO_BIT_UNREGISTER, UFFDIO_UNREGISTER},
		{UFFDIO_BIT_WAKE, UFFDIO_WAKE},
		{UFFDIO_BIT_COPY, UFFDIO_COPY},
		{UFFDIO_BIT_ZEROPAGE, UFFDIO_ZEROPAGE},
		{UFFDIO_BIT_MOVE, UFFDIO_MOVE},
		{UFFDIO_BIT_WRITEPROTECT, UFFDIO_WRITEPROTECT},
		{UFFDIO_BIT_CONTINUE, UFFDIO_CONTINUE},
		{UFFDIO_BIT_POISON, UFFDIO_POISON},
	} {
		if want := Ioctls(1) << (tc.request & 0x3f); tc.bit != want {
			t.Errorf("bit of request %#x = %#x, want %#x", tc.request, uint64(tc.bit), uint64(want))
		}
	}
}

// TestFeatureTable pins spec B.2: one row a bit, in order, without a hole.
func TestFeatureTable(t *testing.T) {
	want := []struct{ name, since string }{
		{"PAGEFAULT_FLAG_WP", "5.7"}, {"EVENT_FORK", "4.11"}, {"EVENT_REMAP", "4.11"},
		{"EVENT_REMOVE", "4.11"}, {"MISSING_HUGETLBFS", "4.11"}, {"MISSING_SHMEM", "4.11"},
		{"EVENT_UNMAP", "4.11"}, {"SIGBUS", "4.14"}, {"THREAD_ID", "4.14"},
		{"MINOR_HUGETLBFS", "5.13"}, {"MINOR_SHMEM", "5.14"}, {"EXACT_ADDRESS", "5.18"},
		{"WP_HUGETLBFS_SHMEM", "5.19"}, {"WP_UNPOPULATED", "6.4"}, {"POISON", "6.6"},
		{"WP_ASYNC", "6.7"}, {"MOVE", "6.8"},
	}
	table := FeatureTable()
	if len(table) != len(want) {
		t.Fatalf("%d features, want %d", len(table), len(want))
	}
	for i, row := range table {
		if row.Bit != 1<<i || row.Name != want[i].name || row.Since != want[i].since {
			t.Errorf("row %d = %v %#x since %s, want %v", i, row.Name, uint64(row.Bit), row.Since, want[i])
		}
		if got := row.Bit.String(); got != row.Name {
			t.Errorf("bit %d prints as %q, want %q", i, got, row.Name)
		}
	}
	table[0].Name = "changed"
	if FeatureTable()[0].Name == "changed" {
		t.Error("the caller's table is the package's")
	}
}

// TestString covers H18: a bit from the future prints, beside known ones.
func TestString(t *testing.T) {
	for _, tc := range []struct {
		got, want string
	}{
		{Features(0).String(), "0"},
		{(UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_FORK).String(), "EVENT_FORK|MOVE"},
		{(UFFD_FEATURE_MOVE | 1<<40 | 1<<41).String(), "MOVE|0x30000000000"},
		{Features(1 << 63).String(), "0x8000000000000000"},
		{UFFD_API_IOCTLS.String(), "REGISTER|UNREGISTER|API"},
		{Ioctls(0x13c).String(), "WAKE|COPY|ZEROPAGE|MOVE|POISON"},
		{Ioctls(1<<9 | 1<<2).String(), "WAKE|0x200"},
		{RegisterMode(0xf).String(), "MISSING|WP|MINOR|0x8"},
		{CopyMode(3).String(), "DONTWAKE|WP"},
		{ZeropageMode(1).String(), "DONTWAKE"},
		{WriteProtectMode(3).String(), "WP|DONTWAKE"},
		{ContinueMode(3).String(), "DONTWAKE|WP"},
		{PoisonMode(5).String(), "DONTWAKE|0x4"},
		{MoveMode(3).String(), "DONTWAKE|ALLOW_SRC_HOLES"},
		{FaultFlags(3).String(), "WRITE|WP"},
		{EventKind(0x14).String(), "REMAP"},
		{EventKind(0x99).String(), "0x99"},
	} {
		if tc.got != tc.want {
			t.Errorf("prints as %q, want %q", tc.got, tc.want)
		}
	}
	if !UFFD_API_FEATURES.Has(UFFD_FEATURE_MOVE|UFFD_FEATURE_SIGBUS) || UFFD_FEATURE_MOVE.Has(UFFD_FEATURE_MOVE|UFFD_FEATURE_SIGBUS) {
		t.Error("Features.Has is not containment")
	}
	if !UFFD_API_IOCTLS.Has(UFFDIO_BIT_API) || UFFD_API_IOCTLS.Has(UFFDIO_BIT_COPY) {
		t.Error("Ioctls.Has is not containment")
	}
}
