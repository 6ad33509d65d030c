// SPDX-License-Identifier: Apache-2.0

package insn

import "github.com/faultline-go/faultline/mem"

// decoder reads one instruction as far as it takes to know what it does to
// memory.
type decoder struct {
	code []byte
	addr mem.Addr
	regs Regs

	operand bool // prefix 66
	repeat  byte // prefix F2 or F3
	short   bool // the code ends too soon
}

func (d *decoder) next() byte {
	if len(d.code) == 0 {
		d.short = true
		return 0
	}
	b := d.code[0]
	d.code = d.code[1:]
	return b
}

// modrm returns the middle field of the byte that names the operands: which of
// eight, for opcodes that stand for several instructions.
func (d *decoder) modrm() (reg byte, memory bool) {
	b := d.next()
	return b >> 3 & 7, b>>6 != 3
}

// near reports whether the fault may be one of an operand at p.
func (d *decoder) near(p uintptr) bool {
	const most = mem.PageSize
	off := int64(d.addr) - int64(p)
	return off > -most && off < most
}

func (d *decoder) instruction() bool {
	for {
		b := d.next()
		switch b {
		case 0x66:
			d.operand = true
		case 0xf2, 0xf3:
			d.repeat = b
		case 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x67:
		default:
			if b&0xf0 == 0x40 { // REX
				b = d.next()
			}
			return d.opcode(b)
		}
	}
}

func (d *decoder) opcode(b byte) bool {
	switch b {
	case 0x0f:
		return d.twoByte(d.next())
	case 0xc4: // VEX of three bytes
		space := d.next() & 0x1f
		d.prefix(d.next() & 3)
		return d.vex(space, d.next())
	case 0xc5:
		d.prefix(d.next() & 3)
		return d.vex(1, d.next())
	case 0x62: // EVEX
		space := d.next() & 7
		d.prefix(d.next() & 3)
		d.next()
		return d.vex(space, d.next())
	}
	return d.oneByte(b)
}

// prefix notes the prefix that a VEX stands for.
func (d *decoder) prefix(pp byte) {
	d.operand = pp == 1
	d.repeat = [4]byte{0, 0, 0xf3, 0xf2}[pp]
}

func (d *decoder) oneByte(b byte) bool {
	reg, _ := (&decoder{code: d.code}).modrm()
	switch {
	case b < 0x40: // arithmetic; of each eight the first two write memory, but cmp
		return b&7 < 2 && b < 0x38
	case b >= 0x50 && b <= 0x57, b == 0x68, b == 0x6a, b == 0xe8, b == 0xc8, b == 0x9c:
		return true // push, call, enter: the stack
	case b >= 0x80 && b <= 0x83:
		return reg != 7 // cmp
	case b == 0x86, b == 0x87, b == 0x88, b == 0x89, b == 0x8c, b == 0x8f,
		b == 0xa2, b == 0xa3, b == 0xaa, b == 0xab, b == 0xc6, b == 0xc7, b == 0x6c, b == 0x6d:
		return true // xchg, mov, pop, stos, ins
	case b == 0xa4, b == 0xa5: // movs
		return d.near(d.regs.DI) && (!d.near(d.regs.SI) || dist(d.addr, d.regs.DI) <= dist(d.addr, d.regs.SI))
	case b == 0xc0, b == 0xc1, b >= 0xd0 && b <= 0xd3:
		return true // shifts
	case b == 0xf6, b == 0xf7:
		return reg == 2 || reg == 3 // not, neg
	case b == 0xfe:
		return true // inc, dec
	case b == 0xff:
		// inc, dec; call and push read an operand and write the stack.
		return reg < 2 || (reg == 2 || reg == 3 || reg == 6) && d.near(d.regs.SP)
	case b >= 0xd8 && b <= 0xdf:
		return x87Stores(b, reg)
	}
	return false
}

func dist(a mem.Addr, p uintptr) uint64 {
	if uint64(a) > uint64(p) {
		return uint64(a) - uint64(p)
	}
	return uint64(p) - uint64(a)
}

func x87Stores(b, reg byte) bool {
	switch b {
	case 0xd9:
		return reg == 2 || reg == 3 || reg >= 6
	case 0xdb:
		return reg >= 1 && reg <= 3 || reg == 7
	case 0xdd:
		return reg >= 1 && reg <= 3 || reg >= 6
	case 0xdf:
		return reg >= 1 && reg <= 3 || reg >= 6
	}
	return false
}

// twoByte is for opcodes behind 0F.
func (d *decoder) twoByte(b byte) bool {
	switch b {
	case 0x38:
		op := d.next()
		return op == 0xf1 && d.repeat != 0xf2 || op == 0xf8 || op == 0xf9 // movbe, movdir64b, movdiri
	case 0x3a:
		op := d.next()
		return op >= 0x14 && op <= 0x17 // extracts
	}
	reg, _ := (&decoder{code: d.code}).modrm()
	switch b {
	case 0xab, 0xb3, 0xbb, 0xa4, 0xa5, 0xac, 0xad, 0xb0, 0xb1, 0xc0, 0xc1, 0xc3, 0xa0, 0xa8:
		return true // bts, btr, btc, double shifts, cmpxchg, xadd, movnti, push
	case 0xba:
		return reg >= 5
	case 0xc7:
		return reg == 1 || reg >= 3 && reg <= 5 // cmpxchg8b, xsave
	case 0xae:
		return reg == 0 || reg == 3 || reg == 4 || reg == 6 // fxsave, stmxcsr, xsave
	case 0xf7:
		return d.near(d.regs.DI) // maskmovdqu
	}
	return b >= 0x90 && b <= 0x9f || d.vectorStores(b)
}

// vectorStores is for the opcodes that 0F and VEX have in common.
func (d *decoder) vectorStores(b byte) bool {
	switch b {
	case 0x11, 0x13, 0x17, 0x29, 0x2b, 0x7f, 0xd6, 0xe7:
		return true
	case 0x7e:
		return d.repeat != 0xf3 // with it, a load
	}
	return false
}

// vex is for opcodes behind a VEX or EVEX prefix.
func (d *decoder) vex(space, op byte) bool {
	switch space {
	case 1:
		return d.vectorStores(op) || op == 0x91 // kmov
	case 2:
		switch op {
		case 0x2e, 0x2f, 0x8e, 0x8a, 0x8b, 0x63, 0xa0, 0xa1, 0xa2, 0xa3:
			return true // masked stores, compress, scatter
		}
		// Down-converting moves.
		return d.repeat == 0xf3 && (op >= 0x10 && op <= 0x15 || op >= 0x20 && op <= 0x25 || op >= 0x30 && op <= 0x35)
	case 3:
		switch op {
		case 0x14, 0x15, 0x16, 0x17, 0x19, 0x1b, 0x1d, 0x39, 0x3b:
			return true // extracts
		}
	}
	return false
}
