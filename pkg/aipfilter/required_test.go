package aipfilter_test

import (
	"maps"
	"testing"

	"phasekey.dev/pkg/aipfilter"
)

func TestRequired(t *testing.T) {
	for _, tt := range []struct {
		filter string
		want   map[string]string
	}{
		{``, nil},
		{`name = lamp`, map[string]string{"name": "lamp"}},
		{`name = "a lamp" AND (on = true AND color = COLOR_RED)`, map[string]string{"name": "a lamp", "on": "true", "color": "COLOR_RED"}},
		{`name = lamp AND (on = true OR color = RED)`, map[string]string{"name": "lamp"}},
		{`name = lamp OR on = true`, nil},
		{`name = "la*" AND color = RED AND name = la*`, map[string]string{"color": "RED"}},
		{`NOT name = lamp`, nil},
		{`NOT (name = lamp AND on = true)`, nil},
		{`-name = lamp`, nil},
		{`name != lamp AND name:lamp AND made > "2024-05-01T12:00:00Z"`, nil},
		{`name = lamp AND`, nil},
		{`name = lamp on = true`, nil},
		{`lamp`, nil},
	} {
		if got := aipfilter.Required(tt.filter); !maps.Equal(got, tt.want) {
			t.Errorf("%s requires %v, want %v", tt.filter, got, tt.want)
		}
	}
}

// What is required is required: whatever passes a filter has it.
func FuzzRequired(f *testing.F) {
	for _, seed := range []string{`name = "Desk \"lamp\"" AND on = true`, `name = lamp OR on = true`, `NOT (on = false)`, `color = DARK_BLUE AND NOT name = x`, `name = "Desk*"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, filter string) {
		passes, err := fields.Parse(filter)
		if err != nil || passes == nil || !passes(lamp) {
			return
		}
		for name, value := range aipfilter.Required(filter) {
			if name == "name" && value != lamp.name || name == "on" && value != "true" {
				t.Errorf("%q is passed by the lamp, and requires %s = %q", filter, name, value)
			}
		}
	})
}
