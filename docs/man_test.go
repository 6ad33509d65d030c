// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
)

const (
	protocolPage = "man/userfaultfd.7"
	// budget is how long a run of the example may take before it counts as
	// hung.
	budget = 20 * time.Second
)

// escapes are what stands in the page for characters that roff would print
// as others, or not at all. The backslash is first so that it is not escaped
// twice.
var escapes = [][2]string{
	{`\`, `\e`}, {`-`, `\-`}, {`'`, `\(aq`}, {"`", `\(ga`}, {`~`, `\(ti`}, {`^`, `\(ha`}, {`"`, `\(dq`},
}

// escape returns text as it must stand in a literal block of a page.
func escape(text string) string {
	for _, e := range escapes {
		text = strings.ReplaceAll(text, e[0], e[1])
	}
	// A line that begins with a dot would be a request.
	return strings.ReplaceAll("\n"+text, "\n.", "\n\\&.")[1:]
}

// unescape undoes escape.
func unescape(text string) string {
	pairs := []string{`\&`, ""}
	for _, e := range escapes {
		pairs = append(pairs, e[1], e[0])
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// examples returns the literal blocks of a page's EXAMPLES as they stand in
// it, without what marks them.
func examples(page string) (blocks []string, err error) {
	_, rest, ok := strings.Cut(page, "\n.Sh EXAMPLES\n")
	if !ok {
		return nil, fmt.Errorf("the page has no EXAMPLES")
	}
	rest, _, _ = strings.Cut(rest, "\n.Sh ")
	rest += "\n"
	for {
		_, block, ok := strings.Cut(rest, "\n.Bd -literal")
		if !ok {
			return blocks, nil
		}
		_, block, _ = strings.Cut(block, "\n") // the rest of the line
		block, rest, ok = strings.Cut(block, "\n.Ed\n")
		if !ok {
			return nil, fmt.Errorf("example %d has no end", len(blocks)+1)
		}
		blocks = append(blocks, block+"\n")
	}
}

// program returns the C program in the manual page and what the page says
// that it prints.
func program(t *testing.T) (source, output string) {
	t.Helper()
	page, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := examples(string(page))
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 2 {
		t.Fatalf("%s has %d examples, want the program and its output", protocolPage, len(blocks))
	}
	// Where the page has an escape too few, readers would see, and copy,
	// something else than what is compiled here.
	for _, b := range blocks {
		if again := escape(unescape(b)); again != b {
			t.Errorf("%s: %s", protocolPage, firstDifference(b, again))
		}
	}
	return unescape(blocks[0]), unescape(blocks[1])
}

func firstDifference(got, want string) string {
	w := strings.Split(want, "\n")
	for i, g := range strings.Split(got, "\n") {
		if i >= len(w) || g != w[i] {
			return fmt.Sprintf("line %d of the example is %q, want %q", i+1, g, w[i:min(i+1, len(w))])
		}
	}
	return "the example ends too early"
}

// TestManExample compiles and runs the program in the manual page. Hazards
// are in its way: faults that race with each other (H3, H4) and with 200
// madvise calls (H2, H5).
func TestManExample(t *testing.T) {
	source, output := program(t)
	testutil.Need(t, runtime.GOOS == "linux", "needs Linux")
	_, err := exec.LookPath("gcc")
	testutil.Need(t, err == nil, "needs gcc")

	dir := t.TempDir()
	src, bin := filepath.Join(dir, "serve.c"), filepath.Join(dir, "serve")
	if err := os.WriteFile(src, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o", bin, src).CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	want := masked(output)
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), budget)
		out, err := exec.CommandContext(ctx, bin).CombinedOutput()
		cancel()
		if strings.Contains(string(out), "userfaultfd: ") {
			testutil.Need(t, false, string(out))
		}
		if err != nil || !want.Match(out) {
			t.Fatalf("%v, and it prints:\n%swant, with any other numbers of faults:\n%s", err, out, output)
		}
	}
}

// masked returns a pattern for output in which the numbers that depend on
// which thread is faster may be others.
func masked(output string) *regexp.Regexp {
	p := regexp.QuoteMeta(output)
	for _, what := range []string{" faults", " pages were there already", " times put off"} {
		p = regexp.MustCompile(`[0-9]+`+what).ReplaceAllString(p, "[0-9]+"+what)
	}
	return regexp.MustCompile("^" + p + "$")
}

// TestManExampleRendered compares the program with what a reader of the page
// sees, and copies.
func TestManExampleRendered(t *testing.T) {
	source, _ := program(t)
	_, err := exec.LookPath("mandoc")
	testutil.Need(t, err == nil, "needs mandoc")
	out, err := exec.Command("mandoc", "-T", "utf8", protocolPage).Output()
	if err != nil {
		t.Fatal(err)
	}
	const indent = "     "
	var seen strings.Builder
	for line := range strings.Lines(regexp.MustCompile(".\b").ReplaceAllString(string(out), "")) {
		seen.WriteString(strings.TrimPrefix(line, indent))
	}
	if !strings.Contains(seen.String(), source) {
		first, _, _ := strings.Cut(source, "\n")
		_, from, _ := strings.Cut(seen.String(), first)
		t.Errorf("as rendered, %s", firstDifference(first+from, source))
	}
	for i, line := range strings.Split(source, "\n") {
		if len(indent)+len(line) > 78 {
			t.Errorf("line %d of the example does not fit on a page: %q", i+1, line)
		}
	}
}

func TestEscape(t *testing.T) {
	for _, text := range []string{"a - 'b' \"c\\n\" ^~`", ".x\n.y\n", "\\-\\e", "x.\n"} {
		if got := unescape(escape(text)); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	for text, want := range map[string]string{".a\n b\n.c": "\\&.a\n b\n\\&.c", `'\n'`: `\(aq\en\(aq`, "x->y": `x\->y`} {
		if got := escape(text); got != want {
			t.Errorf("escape(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestEveryPageIsListed: a manual page that README does not name is not
// found.
func TestEveryPageIsListed(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("man/*.[1-9]")
	if err != nil || len(pages) < 4 {
		t.Fatalf("the manual pages are %v, %v", pages, err)
	}
	for _, page := range pages {
		if !strings.Contains(string(readme), "(docs/"+page+")") {
			t.Errorf("README.md does not link to docs/%s", page)
		}
	}
}
