// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/conformance"
)

// hazard is a row of hazards.md.
type hazard struct {
	id, cell string
	tests    []string // "pager.TestFork", "conformance:lock/all"
}

var (
	hazardRow  = regexp.MustCompile(`(?m)^\| ((?:H|A\.14\.)\d+) \| [^|]+ \| ([^|]+) \|$`)
	testName   = regexp.MustCompile("`((?:conformance:|[a-z/]+\\.Test)[^`]+)`")
	hazardName = regexp.MustCompile(`\b(?:H[1-9]\d?|A\.14\.\d)\b`)
)

func parseHazards(text string) (rows []hazard) {
	for _, m := range hazardRow.FindAllStringSubmatch(text, -1) {
		row := hazard{id: m[1], cell: m[2]}
		for _, n := range testName.FindAllStringSubmatch(m[2], -1) {
			row.tests = append(row.tests, n[1])
		}
		rows = append(rows, row)
	}
	return rows
}

// hazardIDs are the rows that there must be.
func hazardIDs() (ids []string) {
	for i := range 8 {
		ids = append(ids, fmt.Sprintf("A.14.%d", i+1))
	}
	for i := range 26 {
		ids = append(ids, fmt.Sprintf("H%d", i+1))
	}
	return ids
}

// testsIn returns what the tests of a package say of themselves, by name.
func testsIn(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				out[fn.Name.Name] = fn.Doc.Text()
			}
		}
	}
	return out, nil
}

// checkHazards returns what is wrong with the table: rows that are not there,
// tests that do not exist, tests of the given packages that are about a hazard
// and not in its row.
func checkHazards(root, text string, packages []string) (wrong []string, err error) {
	rows := parseHazards(text)
	var ids []string
	for _, r := range rows {
		ids = append(ids, r.id)
	}
	if want := hazardIDs(); !slices.Equal(ids, want) {
		wrong = append(wrong, fmt.Sprintf("rows are %v, and should be %v", ids, want))
	}
	var cases []string
	for _, c := range conformance.Cases() {
		cases = append(cases, c.Name)
	}
	known := map[string]map[string]string{}
	load := func(dir string) error {
		if known[dir] != nil {
			return nil
		}
		known[dir], err = testsIn(filepath.Join(root, dir))
		return err
	}
	for _, r := range rows {
		if len(r.tests) == 0 && !strings.HasPrefix(r.cell, "none: ") {
			wrong = append(wrong, r.id+" names neither a test nor, after \"none: \", why there is none")
		}
		for _, name := range r.tests {
			if c, ok := strings.CutPrefix(name, "conformance:"); ok {
				if !slices.Contains(cases, c) {
					wrong = append(wrong, fmt.Sprintf("%s: there is no case %s", r.id, c))
				}
				continue
			}
			dir, fn, _ := strings.Cut(name, ".")
			if err := load(dir); err != nil {
				return nil, err
			}
			if _, ok := known[dir][fn]; !ok {
				wrong = append(wrong, fmt.Sprintf("%s: there is no test %s in %s", r.id, fn, dir))
			}
		}
	}
	for _, dir := range packages {
		if err := load(dir); err != nil {
			return nil, err
		}
		for fn, doc := range known[dir] {
			for _, id := range hazardName.FindAllString(doc, -1) {
				i := slices.Index(ids, id)
				if i < 0 || !slices.Contains(rows[i].tests, dir+"."+fn) {
					wrong = append(wrong, fmt.Sprintf("%s.%s is about %s, and not in its row", dir, fn, id))
				}
			}
		}
	}
	return wrong, nil
}

// TestHazards: every hazard is in the table, with tests that exist or a reason
// why there is none; and no test of what meets most of them is forgotten.
func TestHazards(t *testing.T) {
	text, err := os.ReadFile("hazards.md")
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := checkHazards("..", string(text), []string{"vkernel", "pager"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range wrong {
		t.Error(s)
	}
}

// TestCheckHazards: each kind of mistake is seen.
func TestCheckHazards(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "p"), 0o755); err != nil {
		t.Fatal(err)
	}
	src := "package p\n\nimport \"testing\"\n\n// TestA covers H2.\nfunc TestA(t *testing.T) {}\n\nfunc TestB(t *testing.T) {}\n"
	if err := os.WriteFile(filepath.Join(root, "p", "p_test.go"), []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	table := func(cell map[string]string) string {
		var b strings.Builder
		for _, id := range hazardIDs() {
			if c, ok := cell[id]; !ok {
				fmt.Fprintf(&b, "| %s | it | none: it is so |\n", id)
			} else if c != "" {
				fmt.Fprintf(&b, "| %s | it | %s |\n", id, c)
			}
		}
		return b.String()
	}
	for _, tc := range []struct {
		cells map[string]string
		want  string // part of the one complaint, empty for none
	}{
		{map[string]string{"H2": "`p.TestA`, `p.TestB`", "H3": "`conformance:lock/all`"}, ""},
		{map[string]string{"H2": "`p.TestA`", "H7": ""}, "rows are"},
		{map[string]string{"H2": "`p.TestA`", "H7": "nothing"}, "H7 names neither"},
		{map[string]string{"H2": "`p.TestA`, `p.TestC`"}, "H2: there is no test TestC in p"},
		{map[string]string{"H2": "`p.TestA`, `q.TestA`"}, "H2: there is no test TestA in q"},
		{map[string]string{"H2": "`p.TestA`, `conformance:lock/nothing`"}, "H2: there is no case lock/nothing"},
		{map[string]string{"H2": "`p.TestB`"}, "p.TestA is about H2, and not in its row"},
	} {
		wrong, err := checkHazards(root, table(tc.cells), []string{"p"})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(wrong); tc.want == "" && n != 0 || tc.want != "" && (n != 1 || !strings.Contains(wrong[0], tc.want)) {
			t.Errorf("%v: complaints %q, want %q", tc.cells, wrong, tc.want)
		}
	}
}
