// SPDX-License-Identifier: Apache-2.0

package model

import (
	"embed"
	"path"
	"strings"
)

//go:embed scripts/*.fl
var shipped embed.FS

// Shipped is a script that comes with the program.
type Shipped struct {
	Name  string
	Title string // what it is about: its first line
	Text  string
}

// ShippedScripts returns them in the order of their names.
func ShippedScripts() (out []Shipped) {
	entries, err := shipped.ReadDir("scripts")
	if err != nil {
		panic("model: the embedded scripts are gone: " + err.Error())
	}
	for _, e := range entries {
		text, err := shipped.ReadFile(path.Join("scripts", e.Name()))
		if err != nil {
			panic("model: an embedded script is gone: " + err.Error())
		}
		first, _, _ := strings.Cut(string(text), "\n")
		out = append(out, Shipped{
			Name:  strings.TrimSuffix(e.Name(), ".fl"),
			Title: strings.TrimSpace(strings.TrimLeft(first, "# ")),
			Text:  string(text),
		})
	}
	return out
}
