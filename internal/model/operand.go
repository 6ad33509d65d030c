// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
)

// kind says what an operand is, or what a name stands for.
type kind int

const (
	kindNone kind = iota
	kindThread
	kindFD
	kindRegion
	kindRange
	kindAddr
	kindText
	kindNumber
	// The name is introduced by the step.
	newThread
	newFD
	newRegion
	newProcess // its first thread has its name
)

// word is how the operand is called in a command's usage.
func (k kind) word() string {
	return [...]string{"", "THREAD", "FD", "REGION", "RANGE", "ADDR", "TEXT", "N", "NAME", "NAME", "NAME", "NAME"}[k]
}

// operand is a word of a step that was understood.
type operand struct {
	name   string // of a thread, descriptor or region
	region *region
	r      mem.Range // of kindRange; starts at the address of kindAddr
	text   string
	n      uint64
}

// usage is how a command is written.
func (v *verb) usage() string {
	words := []string{v.name}
	for _, k := range v.params {
		words = append(words, k.word())
	}
	if v.spare != 0 {
		words = append(words, "["+v.spare.word()+"]")
	}
	switch {
	case v.some != "":
		words = append(words, "["+v.some+"]...")
	case len(v.opts) > 0:
		words = append(words, "["+strings.Join(v.opts, "] [")+"]")
	}
	return strings.Join(words, " ")
}

// operands understands the words after the command.
func (p *parser) operands(st *step, words []string) error {
	v := st.verb
	if len(words) < len(v.params) {
		return fmt.Errorf("usage: %s", v.usage())
	}
	params := v.params
	if v.spare != 0 && len(words) > len(params) && !slices.Contains(v.opts, words[len(params)]) {
		params = append(slices.Clip(params), v.spare)
	}
	for i, k := range params {
		op, err := p.operand(k, words[i])
		if err != nil {
			return err
		}
		st.args = append(st.args, op)
	}
	for _, w := range words[len(params):] {
		if !slices.Contains(v.opts, w) {
			return fmt.Errorf("%q is one word too many, usage: %s", w, v.usage())
		}
		st.opts = append(st.opts, w)
	}
	if v.check != nil {
		return v.check(p, st)
	}
	return nil
}

func (p *parser) operand(k kind, w string) (op operand, err error) {
	switch k {
	case kindThread, kindFD, kindRegion:
		if p.kinds[w] != k {
			return op, fmt.Errorf("there is no %s %q", nouns[k], w)
		}
		return operand{name: w, region: p.regions[w]}, nil
	case newThread, newProcess, newFD, newRegion:
		return p.introduce(k, w)
	case kindNumber:
		if op.n, err = strconv.ParseUint(w, 0, 32); err != nil {
			err = fmt.Errorf("%q is no number", w)
		}
	case kindText:
		if op.text, err = strconv.Unquote(w); err != nil || w[0] != '"' || op.text == "" || len(op.text) > maxText {
			err = fmt.Errorf("%s is no text of 1 to %d bytes in double quotes", w, maxText)
		}
	default:
		return p.place(k, w)
	}
	return op, err
}

var nouns = map[kind]string{kindThread: "thread", kindFD: "descriptor", kindRegion: "memory"}

// introduce makes a name known.
func (p *parser) introduce(k kind, w string) (op operand, err error) {
	for i, c := range w {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return op, fmt.Errorf("%q is no name: use letters, digits, - and _", w)
		}
	}
	if p.kinds[w] != kindNone {
		return op, fmt.Errorf("%q is the name of a %s already", w, nouns[p.kinds[w]])
	}
	op.name = w
	switch k {
	case newFD:
		p.kinds[w] = kindFD
	case newRegion:
		if len(p.s.regions) == maxRegions {
			return op, fmt.Errorf("more than %d regions", maxRegions)
		}
		op.region = &region{name: w, base: regionBase + mem.Addr(len(p.s.regions)*regionGap), unit: mem.PageSize}
		p.s.regions = append(p.s.regions, op.region)
		p.regions[w], p.kinds[w] = op.region, kindRegion
	default:
		if p.threads++; p.threads > maxThreads {
			return op, fmt.Errorf("more than %d threads", maxThreads)
		}
		p.kinds[w] = kindThread
	}
	return op, nil
}

// place understands NAME, NAME[PAGE], NAME[FROM:TO] and, of an address,
// +OFFSET after it.
func (p *parser) place(k kind, w string) (op operand, err error) {
	bad := fmt.Errorf("%q is no place: write NAME, NAME[PAGE], NAME[FROM:TO], or for an address NAME[PAGE]+OFFSET", w)
	rest, offset, plus := strings.Cut(w, "+")
	var off uint64
	if plus {
		if off, err = strconv.ParseUint(offset, 0, 32); err != nil || k != kindAddr {
			return op, bad
		}
	}
	name, index, indexed := strings.Cut(rest, "[")
	r := p.regions[name]
	if r == nil {
		return op, fmt.Errorf("there is no memory %q", name)
	}
	lo, hi := 0, p.sizes[name]
	if indexed {
		index, closed := strings.CutSuffix(index, "]")
		from, to, isRange := strings.Cut(index, ":")
		if lo, err = strconv.Atoi(from); err != nil || !closed {
			return op, bad
		}
		hi = lo + 1
		if isRange {
			if hi, err = strconv.Atoi(to); err != nil {
				return op, bad
			}
		}
	}
	if last := int(regionGap / r.unit); lo < 0 || hi <= lo || hi > last || off >= uint64(last-lo)*r.unit {
		return op, bad
	}
	op.region, op.name = r, name
	op.r = mem.Range{Start: r.page(lo) + mem.Addr(off), End: r.page(hi)}
	return op, nil
}
