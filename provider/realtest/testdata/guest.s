# SPDX-License-Identifier: Apache-2.0

# The firmware of a machine that has nothing else: 64 KiB below 1 MiB. It fills
# memory, and then goes over it for ever, and says so at the debug console:
#
#	R	memory is filled
#	.	every page was as it should be, and has been changed
#	!	a page was not; the machine stops
#
# Each page has, at its end, a mark that tells which page it is, and how often
# it has been changed.

	.set BASE, 0xf0000
	.set FIRST, 0x100000		# 1 MiB
	.set LAST, 0x1100000		# 17 MiB
	.set CONSOLE, 0xe9
	.set MARK, 0x9e3779b1

	.code16
	.text
begin:
start16:
	cli
	lgdtl %cs:gdtr - begin
	movl $0x11, %eax		# protected mode, FPU as it was
	movl %eax, %cr0
	ljmpl $8, $(BASE + start32 - begin)

	.code32
start32:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss

	movl $FIRST, %ebx
fill:
	imull $MARK, %ebx, %ecx
	movl %ecx, 4088(%ebx)
	movl $0, 4092(%ebx)
	addl $4096, %ebx
	cmpl $LAST, %ebx
	jb fill
	movb $'R', %al
	outb %al, $CONSOLE

	xorl %edx, %edx			# passes
pass:
	movl $FIRST, %ebx
page:
	imull $MARK, %ebx, %ecx
	cmpl %ecx, 4088(%ebx)
	jne wrong
	cmpl %edx, 4092(%ebx)
	jne wrong
	incl 4092(%ebx)
	addl $4096, %ebx
	cmpl $LAST, %ebx
	jb page
	movb $'.', %al
	outb %al, $CONSOLE
	incl %edx
	jmp pass

wrong:
	movb $'!', %al
	outb %al, $CONSOLE
stop:
	hlt
	jmp stop

	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	# code, flat
	.quad 0x00cf93000000ffff	# data, flat
gdtr:
	.word gdtr - gdt - 1
	.long BASE + gdt - begin

	# Where the processor begins.
	.org 0xfff0, 0xf4
	.code16
	ljmpw $0xf000, $(start16 - begin)
	.org 0x10000, 0xf4
