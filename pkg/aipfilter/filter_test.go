package aipfilter_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/aipfilter"
)

type color string

type thing struct {
	name   string
	labels []string
	color  color
	colors []color
	on     bool
	made   time.Time
}

var (
	colors = map[string]int32{"COLOR_UNSPECIFIED": 0, "COLOR_RED": 1, "COLOR_DARK_BLUE": 2}
	fields = aipfilter.Fields[thing]{
		"name":   aipfilter.Text(func(t thing) string { return t.name }),
		"labels": aipfilter.Texts(func(t thing) []string { return t.labels }),
		"color":  aipfilter.Enum(colors, "COLOR_", func(t thing) color { return t.color }),
		"colors": aipfilter.Enums(colors, "COLOR_", func(t thing) []color { return t.colors }),
		"on":     aipfilter.Bool(func(t thing) bool { return t.on }),
		"made":   aipfilter.Time(func(t thing) time.Time { return t.made }),
	}
	lamp = thing{
		name: `Desk "lamp"`, labels: []string{"autoattach:production", "a b"}, color: "DARK_BLUE", colors: []color{"RED"}, on: true,
		made: time.Date(2024, 5, 1, 12, 0, 0, 500, time.UTC),
	}
)

func TestFields_Parse(t *testing.T) {
	for _, tt := range []struct {
		filter            string
		wantLamp, wantNil bool // whether they pass
	}{
		{`name = "Desk \"lamp\""`, true, false},
		{`name = 'Desk "lamp"'`, true, false},
		{`name != 'Desk "lamp"'`, false, true},
		{`name = 'desk "lamp"'`, false, false},
		{`name = Desk`, false, false},
		{`name = (Desk)`, false, false},
		{`  name:lamp`, true, false},
		{`  name:"*"`, false, false},
		{`name = ""`, false, true},
		{`name = "Desk*"`, true, false},
		{`name = "desk*"`, false, false},
		{`name = '*"lamp"'`, true, false},
		{`name = "*lamp"`, false, false},
		{`name = "*lamp*"`, true, false},
		{`name = "D*k*p*"`, true, false},
		{`name = "D*p*k*"`, false, false},
		{`name = 'Desk "lamp"*Desk "lamp"'`, false, false},
		{`name = Desk*`, true, false},
		{`name = "*"`, true, true},
		{`name = "**"`, true, true},
		{`name != "Desk*"`, false, true},
		{`NOT name = "Desk*"`, false, true},
		{`name > "Desk*"`, false, false},
		{`name < "Desk*"`, true, true},
		{`name:lamp`, true, false},
		{`name:"*"`, false, false},
		{`name:*`, true, false},
		{`NOT name:*`, false, true},
		{`-name:*`, false, true},
		{`name < "E"`, true, true},
		{`name >= "Desk"`, true, false},
		{`labels:"autoattach:production"`, true, false},
		{`labels:"autoattach"`, false, false},
		{`labels:"a b"`, true, false},
		{`labels:*`, true, false},
		{`color = DARK_BLUE`, true, false},
		{`color = COLOR_DARK_BLUE`, true, false},
		{`color = "DARK_BLUE"`, true, false},
		{`color != RED`, true, true},
		{`color:*`, true, false},
		{`colors:RED`, true, false},
		{`colors:COLOR_DARK_BLUE`, false, false},
		{`colors:*`, true, false},
		{`on = true`, true, false},
		{`on != true`, false, true},
		{`on = false`, false, true},
		{`made > "2024-05-01T12:00:00Z"`, true, false},
		{`made > "2024-05-01T14:00:00+02:00"`, true, false},
		{`made <= "2024-05-01T12:00:00.0000005Z"`, true, true},
		{`made = "2024-05-01T12:00:00.0000005Z"`, true, false},
		{`made:*`, true, false},
		// OR binds closer than AND (AIP-160).
		{`on = false AND name:x OR color = RED`, false, false},
		{`on = true AND name:x OR color = DARK_BLUE`, true, false},
		{`(on = false AND name:x) OR color = DARK_BLUE`, true, false},
		{`NOT (on = true AND color = RED)`, true, true},
		{`( ( on = true ) AND ( name:*  ) )`, true, false},
		{`( labels:"a )" ) OR on = true`, true, false},
		{"  on = true\n AND\t(labels:\"a b\")  ", true, false},
		{`on=true AND labels:"a b"`, true, false},
	} {
		t.Run(tt.filter, func(t *testing.T) {
			passes, err := fields.Parse(tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			if got := passes(lamp); got != tt.wantLamp {
				t.Errorf("the lamp passes: %t", got)
			}
			if got := passes(thing{}); got != tt.wantNil {
				t.Errorf("nothing passes: %t", got)
			}
		})
	}
}

func TestFields_ParseEmpty(t *testing.T) {
	for _, empty := range []string{"", "  \n"} {
		if passes, err := fields.Parse(empty); passes != nil || err != nil {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

func TestFields_ParseRefuses(t *testing.T) {
	for _, tt := range []struct {
		filter   string
		position int
		says     string
	}{
		{`size = 3`, 1, "no such field"},
		{`on = true AND "é" = é AND size = x`, 15, "must begin with a field"},
		{`name = "é" AND size = x`, 16, "no such field"},
		{`  size = x`, 3, "no such field"},
		{`labels.x = "y"`, 1, "must begin with a field"},
		{`name = 3`, 8, "in quotes"},
		{`name = -3`, 8, "in quotes"},
		{`name = a.b`, 8, "in quotes"},
		{`name:(a OR b)`, 7, "one value"},
		{`name`, 1, "compared with something"},
		{`on`, 1, "compared with something"},
		{`"lamp"`, 1, "compared with something"},
		{`7`, 1, "compared with something"},
		{`on = true AND lamp`, 15, "compared with something"},
		{`name = a name = b`, 1, "joined by AND or OR"},
		{`timestamp(name)`, 1, "no functions"},
		{`AND()`, 1, "no functions"},
		{`OR((on = true))`, 1, "no functions"},
		{`name = upper(x)`, 8, "one value"},
		{`labels = "a"`, 10, "colon"},
		{`colors = RED`, 10, "colon"},
		{`color = GREEN`, 9, "no such value"},
		{`color = red`, 9, "no such value"},
		{`color = UNSPECIFIED`, 9, "no such value"},
		{`color = ""`, 9, "no such value"},
		{`color = "DARK*"`, 9, "no such value"},
		{`made = "2024*"`, 8, "RFC 3339"},
		{`color = COLOR_COLOR_RED`, 9, "no such value"},
		{`colors:GREEN`, 8, "no such value"},
		{`color < RED`, 1, "cannot be compared in this way"},
		{`color:RED`, 1, "cannot be compared in this way"},
		{`on = yes`, 6, "true or false"},
		{`on = "true"`, 6, "true or false"},
		{`on:true`, 1, "cannot be compared in this way"},
		{`made > "yesterday"`, 8, "RFC 3339"},
		{`made > "2024-05-01"`, 8, "RFC 3339"},
		{`made:"2024-05-01T12:00:00Z"`, 1, "cannot be compared in this way"},
		{`name = "x`, 8, "unterminated string"},
		{`  name = "x`, 10, "unterminated string"},
		{`(on = true`, 11, ""},
		{`on = true)`, 10, "unexpected trailing token )"},
		{`on = true AND`, 10, "unexpected trailing space"},
		{`on ==true`, 5, "unexpected token ="},
		{`( on = true ) AND size = 3`, 19, "no such field"},
		{`on & true`, 1, "joined by AND or OR"},
		{`;`, 1, "compared with something"},
		{strings.Repeat("(", 21) + "on = true" + strings.Repeat(")", 21), 21, "more than 20 deep"},
		{strings.TrimSuffix(strings.Repeat("on=true AND ", 101), " AND "), 1203, "more than 100 comparisons"},
		{strings.Repeat(" ", 1990) + `name = "xxx"`, 0, "at most 2000 bytes"},
	} {
		t.Run(tt.filter[:min(len(tt.filter), 40)], func(t *testing.T) {
			_, err := fields.Parse(tt.filter)
			var problem *aipfilter.Error
			if !errors.As(err, &problem) {
				t.Fatalf("got %v", err)
			}
			if problem.Position != tt.position || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %q", err)
			}
		})
	}
	for _, most := range []string{
		strings.Repeat("(", 20) + "on = true" + strings.Repeat(")", 20),
		strings.TrimSuffix(strings.Repeat("on=true AND ", 100), " AND "),
	} {
		if passes, err := fields.Parse(most); err != nil || !passes(lamp) {
			t.Errorf("%.40s: %v", most, err)
		}
	}
}

// FuzzFilter: whatever a filter says, it is refused with a place in it, or it is a predicate, and its negation gives
// the other answer.
func FuzzFilter(f *testing.F) {
	for _, seed := range []string{
		`labels:"a b" AND on = true`, `-name:* OR color != RED`, `NOT (made > "2024-05-01T12:00:00Z")`, `colors:RED`, `((`, `AND()`, `NOT(((on = true)))`,
		`f(f(f(f(x`, `name = "\x41\101\u00e9"`, `name = 0x`, `name = -.5`, `"a".b.c = d`, "\xff", "a\r\nb", `name = '`, `name = "D*k*"`, `name != "*a**"`, `on = true AND`, "\u2028on=true", `:*`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		passes, err := fields.Parse(text)
		if err != nil {
			var problem *aipfilter.Error
			if !errors.As(err, &problem) || problem.Problem == "" || problem.Position < 0 || problem.Position > len(text)+1 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if passes == nil {
			if strings.TrimSpace(text) != "" {
				t.Fatalf("%q says nothing", text)
			}
			return
		}
		not, err := fields.Parse("NOT (" + text + ")")
		if err != nil {
			// At the limits of length and depth.
			if len(text) < 1000 && !strings.Contains(err.Error(), "nested") {
				t.Fatalf("NOT (%q): %v", text, err)
			}
			return
		}
		for _, one := range []thing{lamp, {}} {
			if passes(one) == not(one) {
				t.Fatalf("%q and its negation say the same of %+v", text, one)
			}
		}
	})
}
