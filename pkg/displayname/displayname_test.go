package displayname_test

import (
	"errors"
	"strings"
	"testing"

	"phasekey.dev/pkg/displayname"
)

func TestCheck(t *testing.T) {
	for name, good := range map[string]bool{
		"Network, production": true, "Réseau (prod) – 2": true, "Сеть prod": true, "ネットワーク Azure 本番": true, "Δίκτυο": true, "שלום": true, "हिन्दी": true,
		"acme.com production": true, "Node.js & .NET 8.0": true, "v1.2/v1.3": true, "R&D <script>": true, "Tiếng Việt": true, "🚀 launch": true, "": true, "a:b": true,
		"Micr\u043esoft":                  false, // a Cyrillic o
		"P\u0391YMENT":                    false, // a Greek alpha
		"Network\u202egnp":                false,
		"Net\u200bwork":                   false,
		"Net\u2066work":                   false,
		"tab\tbed":                        false,
		"line\u2028break":                 false,
		"fi\ufe0fne":                      false,
		"\u3164":                          false,
		"\U0001d40cicrosoft":              false, // a mathematical M
		"\uff2dicrosoft":                  false, // in full width
		"\u24c2icrosoft":                  false, // in a circle
		"see https://evil.example":        false,
		"HTTP://x":                        false,
		"go to www.evil.example":          false,
		"evil.example/login":              false,
		"evil.example:8443":               false,
		"evil.example?x":                  false,
		"ask admin@evil.example":          false,
		"a" + strings.Repeat("\u0301", 5): false,
	} {
		if err := displayname.Check(name); (err == nil) != good || err != nil && !errors.Is(err, displayname.ErrMisleading) {
			t.Errorf("%q: error %v", name, err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, seed := range []string{"Network", "Micr\u043esoft", "https://x", "a\u0301\u0301", "\xff", "x\u202ey"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if displayname.Check(name) != nil {
			return
		}
		// What is taken can be put on a page, on one line, and leads nowhere.
		for _, bad := range []string{"\u202e", "\u2066", "\n", "\u2028", "\u200b", "://", "\x00"} {
			if strings.Contains(name, bad) {
				t.Errorf("%q is taken", name)
			}
		}
		if displayname.Check("x"+name+"\u202e") == nil {
			t.Errorf("%q hides what follows", name)
		}
	})
}
