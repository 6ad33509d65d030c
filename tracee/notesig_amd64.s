// SPDX-License-Identifier: Apache-2.0

//go:build linux

#include "textflag.h"

// A signal handler by the C calling convention: number in DI, siginfo in SI.
// It keeps si_code and goes on in the Go runtime's handler with all
// arguments in place.
TEXT ·noteSignal(SB), NOSPLIT|NOFRAME, $0
	MOVL DI, AX
	MOVL 8(SI), CX
	LEAQ ·signalCodes(SB), R8
	MOVL CX, (R8)(AX*4)
	MOVQ ·goHandler(SB), AX
	JMP  AX

// func noteSignalPC() uintptr
TEXT ·noteSignalPC(SB), NOSPLIT, $0-8
	LEAQ ·noteSignal(SB), AX
	MOVQ AX, ret+0(FP)
	RET
