// SPDX-License-Identifier: Apache-2.0

package insn

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

const (
	si = 0x10000
	di = 0x900000
	sp = 0x7f0000
)

// TestAMD64 has an instruction of each kind, as an assembler makes it.
func TestAMD64(t *testing.T) {
	for _, c := range []struct {
		code  string
		asm   string
		at    mem.Addr
		write bool
	}{
		{"8a 00", "mov (%rax),%al", 1, false},
		{"88 00", "mov %al,(%rax)", 1, true},
		{"48 89 08", "mov %rcx,(%rax)", 1, true},
		{"48 8b 08", "mov (%rax),%rcx", 1, false},
		{"66 c7 00 05 00", "movw $5,(%rax)", 1, true},
		{"0f b6 00", "movzbl (%rax),%eax", 1, false},
		{"01 08", "add %ecx,(%rax)", 1, true},
		{"03 08", "add (%rax),%ecx", 1, false},
		{"39 08", "cmp %ecx,(%rax)", 1, false},
		{"83 38 00", "cmpl $0,(%rax)", 1, false},
		{"83 00 01", "addl $1,(%rax)", 1, true},
		{"85 08", "test %ecx,(%rax)", 1, false},
		{"f0 0f b1 08", "lock cmpxchg %ecx,(%rax)", 1, true},
		{"f0 48 0f c1 08", "lock xadd %rcx,(%rax)", 1, true},
		{"87 08", "xchg %ecx,(%rax)", 1, true},
		{"f7 18", "negl (%rax)", 1, true},
		{"f7 20", "mull (%rax)", 1, false},
		{"ff 00", "incl (%rax)", 1, true},
		{"ff 10", "call *(%rax), target", 1, false},
		{"ff 10", "call *(%rax), stack", sp - 8, true},
		{"50", "push %rax", sp - 8, true},
		{"f3 48 ab", "rep stos", di, true},
		{"f3 a4", "rep movsb, to", di + 5, true},
		{"f3 a4", "rep movsb, from", si + 5, false},
		{"a6", "cmpsb", di, false},
		{"0f 11 00", "movups %xmm0,(%rax)", 1, true},
		{"0f 10 00", "movups (%rax),%xmm0", 1, false},
		{"66 0f 7f 00", "movdqa %xmm0,(%rax)", 1, true},
		{"f3 0f 7e 00", "movq (%rax),%xmm0", 1, false},
		{"66 0f d6 00", "movq %xmm0,(%rax)", 1, true},
		{"0f c3 08", "movnti %ecx,(%rax)", 1, true},
		{"c5 fe 7f 00", "vmovdqu %ymm0,(%rax)", 1, true},
		{"c5 fe 6f 00", "vmovdqu (%rax),%ymm0", 1, false},
		{"c5 fd e7 00", "vmovntdq %ymm0,(%rax)", 1, true},
		{"62 f1 fe 48 7f 00", "vmovdqu64 %zmm0,(%rax)", 1, true},
		{"62 f1 fe 48 6f 00", "vmovdqu64 (%rax),%zmm0", 1, false},
		{"c4 e2 7d 2f 00", "vmaskmovpd %ymm0,%ymm0,(%rax)", 1, true},
		{"d9 18", "fstps (%rax)", 1, true},
		{"d9 00", "flds (%rax)", 1, false},
		{"0f ae 20", "xsave (%rax)", 1, true},
		{"0f 94 00", "sete (%rax)", 1, true},
		{"48 0f ab 08", "bts %rcx,(%rax)", 1, true},
		{"48 0f a3 08", "bt %rcx,(%rax)", 1, false},
		{"d1 20", "shll (%rax)", 1, true},
		{"", "nothing", 1, false},
	} {
		code, err := hex.DecodeString(strings.ReplaceAll(c.code, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := AMD64(code, c.at, Regs{SI: si, DI: di, SP: sp}); got != c.write {
			t.Errorf("%s (%s) writes: %v", c.asm, c.code, got)
		}
	}
}

// TestARM64 has one of each group.
func TestARM64(t *testing.T) {
	for _, c := range []struct {
		code  uint32
		asm   string
		write bool
	}{
		{0xf9400020, "ldr x0, [x1]", false},
		{0xf9000020, "str x0, [x1]", true},
		{0x39400020, "ldrb w0, [x1]", false},
		{0x39000020, "strb w0, [x1]", true},
		{0x39c00020, "ldrsb w0, [x1]", false},
		{0xf8408420, "ldr x0, [x1], #8", false},
		{0xf8008420, "str x0, [x1], #8", true},
		{0xf8626820, "ldr x0, [x1, x2]", false},
		{0xf8226820, "str x0, [x1, x2]", true},
		{0xa9400820, "ldp x0, x2, [x1]", false},
		{0xa9000820, "stp x0, x2, [x1]", true},
		{0x3dc00020, "ldr q0, [x1]", false},
		{0x3d800020, "str q0, [x1]", true},
		{0xad400420, "ldp q0, q1, [x1]", false},
		{0xad000420, "stp q0, q1, [x1]", true},
		{0x4c407020, "ld1 {v0.16b}, [x1]", false},
		{0x4c007020, "st1 {v0.16b}, [x1]", true},
		{0xc85ffc20, "ldaxr x0, [x1]", false},
		{0xc802fc20, "stlxr w2, x0, [x1]", true},
		{0xf8200041, "ldadd x0, x1, [x2]", true},
		{0xf8208041, "swp x0, x1, [x2]", true},
		{0x58000040, "ldr x0, literal", false},
		{0xf9800020, "prfm pldl1keep, [x1]", false},
		{0xd50b7420, "dc zva, x0", true},
	} {
		b := []byte{byte(c.code), byte(c.code >> 8), byte(c.code >> 16), byte(c.code >> 24)}
		if got := ARM64(b); got != c.write {
			t.Errorf("%s (%08x) writes: %v", c.asm, c.code, got)
		}
	}
}

func FuzzAMD64(f *testing.F) {
	f.Add([]byte{0xf3, 0xa4}, uint64(di))
	f.Fuzz(func(t *testing.T, code []byte, at uint64) {
		AMD64(code, mem.Addr(at), Regs{SI: si, DI: di, SP: sp}) // does not panic, and ends
	})
}
