// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func Bring(b []byte)
TEXT ·Bring(SB), NOSPLIT, $0-24
	MOVQ b_base+0(FP), AX
	MOVQ b_len+8(FP), CX
	ADDQ AX, CX
	ANDQ $~63, AX
line:
	CMPQ AX, CX
	JAE  done
	PREFETCHT0 (AX)
	ADDQ $64, AX
	JMP  line
done:
	RET
