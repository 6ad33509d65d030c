// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// link is an inline link or picture of Markdown; its target is group 1.
var link = regexp.MustCompile(`\]\(<?([^()<>\s]+)>?(?:\s+"[^"]*")?\)`)

// prose returns a Markdown text without its code.
func prose(text string) string {
	var out strings.Builder
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			continue
		}
		if !fenced {
			out.WriteString(line)
		}
	}
	return regexp.MustCompile("`[^`\n]*`").ReplaceAllString(out.String(), "")
}

// anchors returns the names that the headings of a Markdown text have.
func anchors(text string) (names []string) {
	for line := range strings.Lines(text) {
		if heading := strings.TrimLeft(line, "#"); heading != line && strings.HasPrefix(heading, " ") {
			name := strings.ToLower(strings.TrimSpace(heading))
			name = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(name, "")
			names = append(names, strings.ReplaceAll(name, " ", "-"))
		}
	}
	return names
}

// brokenLinks returns a sentence for every relative link in README.md, the
// other pages beside it and those below docs that leads nowhere, and all the
// files that are linked to.
func brokenLinks(root fs.FS) (out []string, linked []string, err error) {
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && name != "docs" && !strings.HasPrefix(name, "docs/") {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".md" {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(prose(string(text)), -1) {
			target, err := follow(root, name, m[1])
			if err != nil {
				out = append(out, fmt.Sprintf("%s links to %s: %v", name, m[1], err))
			}
			linked = append(linked, target)
		}
		return nil
	})
	return out, linked, err
}

// follow returns the file to which target leads from page, or nothing if
// that is outside of the tree.
func follow(root fs.FS, page, target string) (string, error) {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return "", nil
	}
	file, anchor, _ := strings.Cut(target, "#")
	if file == "" {
		file = page
	} else {
		file = path.Join(path.Dir(page), file)
	}
	if _, err := fs.Stat(root, file); err != nil {
		return "", err
	}
	if anchor == "" {
		return file, nil
	}
	text, err := fs.ReadFile(root, file)
	if err != nil {
		return "", err
	}
	if !slices.Contains(anchors(prose(string(text))), anchor) {
		return "", errors.New("no such heading")
	}
	return file, nil
}

func TestLinks(t *testing.T) {
	root := os.DirFS("..")
	out, linked, err := brokenLinks(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(linked) < 20 {
		t.Errorf("only %d links found: is this the module's root?", len(linked))
	}
	for _, s := range out {
		t.Error(s)
	}
	pages, err := fs.Glob(root, "docs/concepts/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if !slices.Contains(linked, page) {
			t.Errorf("no page links to %s", page)
		}
	}
}

// TestBrokenLinks: each kind of broken link is seen, and code is not taken
// for one.
func TestBrokenLinks(t *testing.T) {
	root := fstest.MapFS{}
	for name, text := range map[string]string{
		"README.md":   "[a](docs/a.md) [b](docs/none.md) [c](https://example.org/x) `[d](none)`\n# One, two\n[e](#one-two) [f](#three)\n",
		"docs/a.md":   "![p](p.svg) [up](../README.md#one-two) [up](../README.md#no)\n```\n[x](none)\n```\n[dir](../docs)\n",
		"docs/p.svg":  "",
		"other/no.md": "[x](none)",
	} {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	out, linked, err := brokenLinks(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range out {
		got = append(got, strings.SplitN(s, ": ", 2)[0])
	}
	want := []string{"README.md links to docs/none.md", "README.md links to #three", "docs/a.md links to ../README.md#no"}
	if !slices.Equal(got, want) {
		t.Errorf("broken are %q, want %q", got, want)
	}
	if len(linked) != 9 || !slices.Contains(linked, "docs/p.svg") {
		t.Errorf("linked are %q", linked)
	}
}

// checkPicture returns what is wrong with an SVG file: it must be well-formed
// and stand alone, scale, say in words what it shows, and be readable in
// light and in dark.
func checkPicture(svg []byte) (out []string) {
	need := map[string]bool{"svg": false, "title": false, "desc": false, "text": false}
	for dec := xml.NewDecoder(bytes.NewReader(svg)); ; {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return append(out, err.Error())
		}
		el, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		need[el.Name.Local] = true
		has := map[string]bool{}
		for _, a := range el.Attr {
			has[a.Name.Local] = true
			if a.Name.Local == "href" && !strings.HasPrefix(a.Value, "#") {
				out = append(out, "it needs "+a.Value)
			}
		}
		if el.Name.Local == "svg" && !has["viewBox"] {
			out = append(out, "it has no viewBox")
		}
	}
	for name, seen := range need {
		if !seen {
			out = append(out, "it has no "+name)
		}
	}
	for _, outside := range []string{"@import", "@font-face", "url(http", "<image", "<script"} {
		if bytes.Contains(svg, []byte(outside)) {
			out = append(out, "it has "+outside)
		}
	}
	if !bytes.Contains(svg, []byte("prefers-color-scheme: dark")) {
		out = append(out, "it has no dark colours")
	}
	return out
}

func TestPictures(t *testing.T) {
	root := os.DirFS(".")
	pictures, err := fs.Glob(root, "concepts/*.svg")
	if err != nil || len(pictures) < 3 {
		t.Fatalf("the pictures are %v, %v", pictures, err)
	}
	for _, name := range pictures {
		svg, err := fs.ReadFile(root, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range checkPicture(svg) {
			t.Errorf("%s: %s", name, s)
		}
	}
}

func TestCheckPicture(t *testing.T) {
	const good = `<svg viewBox="0 0 1 1"><title/><desc/><style>@media (prefers-color-scheme: dark) {}</style><text/></svg>`
	for svg, want := range map[string]string{
		good: "",
		strings.Replace(good, "<text/>", "<text>", 1):                     "XML syntax error",
		strings.Replace(good, "<text/>", "", 1):                           "no text",
		strings.Replace(good, ` viewBox="0 0 1 1"`, "", 1):                "no viewBox",
		strings.Replace(good, "dark", "light", 1):                         "no dark",
		strings.Replace(good, "<text/>", `<text/><use href="a.svg"/>`, 1): "needs a.svg",
		strings.Replace(good, "<style>", "<style>@import 'x';", 1):        "has @import",
		good[:len(good)-6]: "XML syntax error",
	} {
		got := strings.Join(checkPicture([]byte(svg)), "; ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", svg, got, want)
		}
	}
}
