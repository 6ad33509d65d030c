// SPDX-License-Identifier: Apache-2.0

//go:build linux

#include "textflag.h"

// A signal handler by the C calling convention: number in R0, siginfo in R1.
// It keeps si_code and goes on in the Go runtime's handler with all
// arguments in place.
TEXT ·noteSignal(SB), NOSPLIT|NOFRAME, $0
	MOVWU R0, R3
	MOVW  8(R1), R4
	MOVD  $·signalCodes(SB), R5
	ADD   R3<<2, R5
	MOVW  R4, (R5)
	MOVD  ·goHandler(SB), R5
	JMP   (R5)

// func noteSignalPC() uintptr
TEXT ·noteSignalPC(SB), NOSPLIT, $0-8
	MOVD $·noteSignal(SB), R3
	MOVD R3, ret+0(FP)
	RET
