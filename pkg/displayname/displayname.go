// Package displayname refuses names that would mislead the people who read them.
package displayname

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// ErrMisleading means that a name would mislead those who read it.
var ErrMisleading = errors.New("the name would mislead")

// maxMarks is how many marks one letter may have: what needs more is not text.
const maxMarks = 4

// address is what leads elsewhere, or looks as if it did.
var address = regexp.MustCompile(`(?i)://|\bwww\.|[\pL\pN-]+\.[\pL]{2,}[/?#:]|\S@\S+\.\S`)

// alphabets are those whose letters look like each other's.
var alphabets = map[string]*unicode.RangeTable{
	"Latin": unicode.Latin, "Cyrillic": unicode.Cyrillic, "Greek": unicode.Greek, "Armenian": unicode.Armenian,
	"Cherokee": unicode.Cherokee, "Coptic": unicode.Coptic, "Lisu": unicode.Lisu, "Deseret": unicode.Deseret,
}

// styled are letters that only look like others: in full width, in circles, or as mathematics has them.
var styled = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x2460, Hi: 0x24ff, Stride: 1}, {Lo: 0xff01, Hi: 0xff5e, Stride: 1}},
	R32: []unicode.Range32{{Lo: 0x1d400, Hi: 0x1d7ff, Stride: 1}, {Lo: 0x1f100, Hi: 0x1f1ff, Stride: 1}},
}

// Check returns ErrMisleading, and why, if a name would mislead those who read it on a page. It takes any language's names, also of words in
// several alphabets. That a word of one alphabet alone looks like one of another, it does not find.
func Check(text string) error {
	marks := 0
	for _, r := range text {
		switch {
		case unicode.Is(unicode.C, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r), unicode.Is(unicode.Variation_Selector, r), r == 0x3164, r == 0x115f, r == 0x1160, r == 0xffa0:
			return fmt.Errorf("%w: has a character that cannot be seen, or turns text around", ErrMisleading)
		case unicode.Is(unicode.M, r):
			if marks++; marks > maxMarks {
				return fmt.Errorf("%w: has a heap of marks on one letter", ErrMisleading)
			}
			continue
		case unicode.Is(styled, r):
			return fmt.Errorf("%w: has letters in another guise", ErrMisleading)
		}
		marks = 0
	}
	if address.MatchString(text) {
		return fmt.Errorf("%w: has an address", ErrMisleading)
	}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.Is(unicode.M, r) }) {
		seen := map[string]bool{}
		for _, r := range word {
			for name, alphabet := range alphabets {
				if unicode.Is(alphabet, r) {
					seen[name] = true
				}
			}
		}
		if len(seen) > 1 {
			return fmt.Errorf("%w: mixes alphabets in one word", ErrMisleading)
		}
	}
	return nil
}
