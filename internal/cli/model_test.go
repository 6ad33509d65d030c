// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/faultline-go/faultline/internal/model"
)

// TestManNamesModel keeps the manual and the program together: the page has
// every command of the language as it is written, every script and profile.
func TestManNamesModel(t *testing.T) {
	page := readFile(t, "../../docs/man/faultline-model.1")
	words := append(model.ProfileNames(), model.Schema, ModelListSchema, "-profile", "-list", "-json")
	for _, s := range model.ShippedScripts() {
		words = append(words, ".It Cm "+s.Name)
	}
	for _, k := range []model.Kind{model.KindFault, model.KindSleep, model.KindWoken, model.KindAccess,
		model.KindCall, model.KindMessage, model.KindLayout, model.KindShow} {
		words = append(words, ".Cm "+string(k))
	}
	for _, line := range model.Usage() {
		words = append(words, ".It Li \""+line+"\"")
	}
	for _, word := range words {
		if !strings.Contains(page, word) {
			t.Errorf("faultline-model(1) does not have %q", word)
		}
	}
}
