// SPDX-License-Identifier: Apache-2.0

// Package size reads and prints amounts of memory: the "64MiB" and "25%" of
// the command line.
//
// Units are binary whichever way they are written, as in the tools that
// people compare a limit with: 64M, 64MiB and 67108864 are the same. MB is
// refused, because half of its readers mean 1,000,000 by it.
package size

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// accepted closes every error, so that the user need not look it up.
const accepted = "write a size such as 64MiB, 1.5G or 67108864, or a share of memory such as 25%"

// Size is an amount of memory, either absolute or as a share of what the
// machine has. The zero Size means "not set"; Parse never returns it.
// It implements pflag.Value through its pointer.
type Size struct {
	bytes   uint64
	percent float64
	text    string // as the user wrote it
}

// Bytes returns the absolute size of n bytes.
func Bytes(n uint64) Size { return Size{bytes: n, text: Format(n)} }

// Percent returns a share of the machine's memory. p is not checked.
func Percent(p float64) Size {
	return Size{percent: p, text: strconv.FormatFloat(p, 'f', -1, 64) + "%"}
}

// Error says why a text is no size.
type Error struct {
	Text   string // as given
	Reason string // what is wrong with it
}

// Error names the text, the reason and what would have been accepted.
func (e *Error) Error() string {
	return fmt.Sprintf("size %q: %s: %s", e.Text, e.Reason, accepted)
}

// maxDigits bounds the work that a hostile argument can cause. The largest
// size has nineteen digits; the rest is room for a fraction.
const maxDigits = 40

// shifts maps a unit, in lower case, to its binary logarithm.
var shifts = map[string]uint{
	"": 0, "b": 0,
	"k": 10, "kib": 10,
	"m": 20, "mib": 20,
	"g": 30, "gib": 30,
	"t": 40, "tib": 40,
	"p": 50, "pib": 50,
}

// Parse reads a size. Fractions are exact and rounded down to whole bytes.
// It refuses zero, negative amounts, units it does not know, shares above
// 100% and whatever does not fit an int64, with an [*Error].
func Parse(s string) (Size, error) {
	fail := func(format string, args ...any) (Size, error) {
		return Size{}, &Error{Text: s, Reason: fmt.Sprintf(format, args...)}
	}
	t := strings.TrimSpace(s)
	if t == "" {
		return fail("it is empty")
	}
	if strings.HasPrefix(t, "-") {
		return fail("it is negative")
	}
	end := strings.IndexFunc(t, func(r rune) bool {
		return (r < '0' || r > '9') && r != '.'
	})
	if end < 0 {
		end = len(t)
	}
	number, unit := t[:end], strings.ToLower(strings.TrimSpace(t[end:]))
	if strings.Trim(number, ".") == "" || strings.Count(number, ".") > 1 {
		return fail("it does not begin with a number")
	}
	if len(number) > maxDigits {
		return fail("it has more than %d digits", maxDigits)
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return fail("%q is no number", number)
	}
	if unit == "%" {
		if value.Sign() == 0 {
			return fail("it is zero")
		}
		p, _ := value.Float64()
		if p > 100 || p == 0 { // too small for a float64
			return fail("a share of memory lies above 0%% and up to 100%%")
		}
		return Size{percent: p, text: t}, nil
	}
	shift, ok := shifts[unit]
	switch {
	case ok:
	case len(unit) == 2 && unit[1] == 'b' && strings.Contains("kmgtp", unit[:1]):
		return fail("%s may mean a power of ten or of two; for two to the %d write %siB",
			strings.ToUpper(unit), shifts[unit[:1]], strings.ToUpper(unit[:1]))
	default:
		return fail("unknown unit %q (known: B, KiB or K, MiB or M, GiB or G, TiB or T, PiB or P, %%)", unit)
	}
	if value.Sign() == 0 {
		return fail("it is zero")
	}
	scaled := new(big.Int).Lsh(value.Num(), shift)
	scaled.Quo(scaled, value.Denom())
	if scaled.Sign() == 0 {
		return fail("it is less than one byte")
	}
	if !scaled.IsInt64() {
		return fail("it is more than an address space holds")
	}
	return Size{bytes: scaled.Uint64(), text: t}, nil
}

// IsZero reports whether s was never set.
func (s Size) IsZero() bool { return s.bytes == 0 && s.percent == 0 }

// Relative reports whether s is a share of memory, and which, in percent.
func (s Size) Relative() (percent float64, ok bool) { return s.percent, s.percent != 0 }

// Of returns s in bytes, where total is what a share refers to. The zero
// Size gives zero; a share is rounded down, but never to zero.
func (s Size) Of(total uint64) uint64 {
	if s.percent == 0 {
		return s.bytes
	}
	n := float64(total) * (s.percent / 100)
	if n < 1 {
		return 1
	}
	if n >= math.MaxInt64 {
		return math.MaxInt64
	}
	return uint64(n)
}

// Resolve returns s in bytes. A share is taken of [Memory]; its error is
// returned when that cannot be found out.
func (s Size) Resolve() (uint64, error) {
	if s.percent == 0 {
		return s.bytes, nil
	}
	m, err := Memory()
	if err != nil {
		return 0, fmt.Errorf("size %s: %w: give it in bytes, such as 64MiB", s, err)
	}
	return s.Of(m.Usable()), nil
}

// String returns s as it was written.
func (s Size) String() string { return s.text }

// Set is Parse for the flag library.
func (s *Size) Set(text string) error {
	v, err := Parse(text)
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// Type names the argument in a command's help.
func (s *Size) Type() string { return "SIZE" }

// Format prints n in the largest unit of which it holds at least one, with
// one decimal unless it is a whole number of units. Parse reads it back,
// exactly in the latter case.
func Format(n uint64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return strconv.FormatUint(n, 10) + "B"
	}
	u := 0
	for u < len(units)-1 && n >= 1<<(10*(u+2)) {
		u++
	}
	unit := uint64(1) << (10 * (u + 1))
	if n%unit == 0 {
		return fmt.Sprintf("%d%ciB", n/unit, units[u])
	}
	text := strconv.FormatFloat(float64(n)/float64(unit), 'f', 1, 64)
	if text == "1024.0" && u < len(units)-1 {
		return fmt.Sprintf("1%ciB", units[u+1])
	}
	return text + string(units[u]) + "iB"
}
